from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.registry.site import DATABASES, Site, open_site

Sites = Callable[..., Site]


@pytest.fixture(scope="package")
def sites(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """Services by their options, each a thread of this process, started once and shared by all tests here.

    worker: have a worker beside it. It looks at everything that is pushed there: ask for it only if jobs must run.
    """
    found: dict[object, Site] = {}
    with ExitStack() as stack:

        def get(database: str, *, auth: str = "none", worker: bool = False) -> Site:
            key = (database, auth, worker)
            if key not in found:
                server = request.getfixturevalue("postgres_server") if database == "postgresql" else ""
                extra = {"LORA_REG_AUTH": auth}
                found[key] = stack.enter_context(
                    open_site(database, tmp_path_factory.mktemp(database), server, extra=extra)
                )
                found[key].serve()
                if worker:
                    found[key].worker()
            return found[key]

        yield get


@pytest.fixture(scope="module")
def processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """Services that are processes of `lora-registry serve --workers N`, by database and N, for the tests of one file."""
    found: dict[object, Site] = {}
    with ExitStack() as stack:

        def get(database: str, number: int) -> Site:
            key = (database, number)
            if key not in found:
                server = request.getfixturevalue("postgres_server") if database == "postgresql" else ""
                arguments = ("--workers", str(number))
                found[key] = stack.enter_context(
                    open_site(database, tmp_path_factory.mktemp(database), server, arguments=arguments)
                )
                found[key].start()
            return found[key]

        yield get


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def site(sites: Sites, database: str, request: pytest.FixtureRequest) -> Site:
    """A service with the base in it, on each database. Others use it too: take names of your own.

    A test whose jobs must run is marked `worker`.
    """
    found = sites(database, worker=request.node.get_closest_marker("worker") is not None)
    found.need_base()
    return found
