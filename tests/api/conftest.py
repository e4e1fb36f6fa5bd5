from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.api.site import DATABASES, Site, open_site

Sites = Callable[..., Site]


@pytest.fixture(scope="package")
def sites(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """Running services by their options, each started once in this process and shared by all tests here.

    arguments: those of `lora-registry serve`. The service is a process if there are any, else a thread without a worker.
    worker: have a worker beside the thread. It looks at everything that is pushed there: ask for it only if jobs must run.
    """
    found: dict[object, Site] = {}
    with ExitStack() as stack:

        def get(database: str, *, auth: str = "none", arguments: tuple[str, ...] = (), worker: bool = False) -> Site:
            key = (database, auth, arguments, worker)
            if key not in found:
                server = request.getfixturevalue("postgres_server") if database == "postgresql" else ""
                folder, extra = tmp_path_factory.mktemp(database), {"LORA_REG_AUTH": auth}
                site = stack.enter_context(open_site(database, folder, server, extra=extra, arguments=arguments))
                site.start() if arguments else site.serve()
                if worker:
                    site.worker()
                found[key] = site
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
