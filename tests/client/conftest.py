"""A real service in a thread of each test process, with the tiny base registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import service
from tests.support.command import ALIAS, TINY, Home


@pytest.fixture(scope="package")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bool], service.InProcess]]:
    """The service by whether it has a worker, which looks at all that is pushed there."""
    found: dict[bool, service.InProcess] = {}
    with ExitStack() as stack:

        def get(working: bool) -> service.InProcess:
            if working not in found:
                folder = tmp_path_factory.mktemp("registry")
                running = stack.enter_context(service.in_process(folder / "data"))
                Home(folder / "home", running.url).ok("base", "add", "tiny", TINY / "base", "--alias", ALIAS)
                if working:
                    stack.enter_context(service.worker(running, folder / "worker.log"))
                found[working] = running
            return found[working]

        yield get


@pytest.fixture
def registry(registries: Callable[[bool], service.InProcess], request: pytest.FixtureRequest) -> service.InProcess:
    """The service of the client's tests. A test whose jobs must run is marked `worker`."""
    return registries(request.node.get_closest_marker("worker") is not None)


@pytest.fixture
def home(registry: service.InProcess, tmp_path: Path) -> Home:
    return Home(tmp_path / "home", registry.url)
