"""One real service per test process, with the tiny base registered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import service
from tests.support.command import ALIAS, TINY, Home


@pytest.fixture(scope="package")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    folder = tmp_path_factory.mktemp("registry")
    with service.running(folder / "data") as running:
        Home(folder / "home", running.url).ok("base", "add", "tiny", TINY / "base", "--alias", ALIAS)
        yield running


@pytest.fixture
def home(registry: service.Service, tmp_path: Path) -> Home:
    return Home(tmp_path / "home", registry.url)
