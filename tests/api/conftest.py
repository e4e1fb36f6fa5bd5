from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.api.site import DATABASES, Site, open_site

Sites = Callable[..., Site]


@pytest.fixture(scope="package")
def sites(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """Running services by their options, each started once in this process and shared by all tests here."""
    found: dict[object, Site] = {}
    with ExitStack() as stack:

        def get(database: str, *, auth: str = "none", arguments: tuple[str, ...] = ()) -> Site:
            key = (database, auth, arguments)
            if key not in found:
                found[key] = stack.enter_context(
                    open_site(
                        database,
                        tmp_path_factory.mktemp(database),
                        postgres_server,
                        extra={"LORA_REG_AUTH": auth},
                        arguments=arguments,
                    )
                )
            return found[key]

        yield get


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def site(sites: Sites, database: str) -> Site:
    """A service with the base in it, on each database. Others use it too: take names of your own."""
    found = sites(database)
    found.need_base()
    return found
