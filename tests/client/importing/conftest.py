"""A second registry, whose Hub dialect is the Hub that adapters are imported from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import service
from tests.support.command import ALIAS, TINY, Home, variant

ORGANISATION = "acme"
ADAPTERS = {"one": 3, "two": 5, "three": 7}
"""Names of the adapters there, and the seeds of their weights."""


@pytest.fixture(scope="package")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.InProcess]:
    """The other registry: a base, three adapters, one of which has two versions, and a data set."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with service.in_process(folder / "data") as running:
        home = Home(folder / "home", running.url)
        home.ok("base", "add", f"{ORGANISATION}/tiny", TINY / "base", "--alias", ALIAS)
        for name, seed in ADAPTERS.items():
            pushed = variant(folder / name, seed=100 + seed)
            (pushed / "README.md").write_text(f"# {name}\n")
            home.ok("push", pushed, "--base", f"{ORGANISATION}/tiny", f"{ORGANISATION}/{name}")
        home.ok("push", variant(folder / "newer", seed=109), "--base", f"{ORGANISATION}/tiny", f"{ORGANISATION}/one")
        (folder / "data.jsonl").write_text('{"text": "one"}\n')
        home.ok("dataset", "add", f"{ORGANISATION}/texts", folder / "data.jsonl")
        yield running


@pytest.fixture
def hub(elsewhere: service.InProcess) -> str:
    """The endpoint of the Hub."""
    return f"{elsewhere.url}/hf"


@pytest.fixture(scope="package")
def organisation(elsewhere: service.InProcess) -> Home:
    """A user of the other registry."""
    return Home(Path(elsewhere.environment["LORA_REG_DATA"]).parent / "home", elsewhere.url)
