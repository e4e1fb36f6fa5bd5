"""What holds without a setting: links, data folders, and reads beside a locked database."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_contract.errors import RegistryError
from lora_registry import settings
from tests.registry.conftest import Sites
from tests.registry.hub.clients import VERSIONS, python_with, run
from tests.registry.site import SHARED, Site, base_files, open_site
from tests.support.push import push


def link(site: Site, host: str | None = None) -> str:
    """The Link header of a first page."""
    token = site.token("admin") if site.extra["LORA_REG_AUTH"] == "token" else None
    with site.connect(token) as client:
        answer = client.get("/hf/api/models?limit=1", headers={"Host": host} if host else {})
    assert answer.status_code == 200, answer.text
    found: str = answer.headers["Link"]
    return found


def two_repositories(site: Site) -> None:
    with site.connect(site.token("admin") if site.extra["LORA_REG_AUTH"] == "token" else None) as client:
        for name in ("base", "copy"):
            assert push(client, SHARED, name, "base", base_files()).status_code in (200, 201)


def test_links_are_not_built_from_any_host_name(sites: Sites, tmp_path: Path) -> None:
    site = sites("sqlite", auth="token")
    two_repositories(site)
    assert link(site).startswith(f"<{site.url}/hf/api/models?")
    assert link(site, "evil.example").startswith("</hf/api/models?")
    extra = {"LORA_REG_AUTH": "token", "LORA_REG_PUBLIC_URL": "https://registry.example/"}
    with open_site("sqlite", tmp_path / "public", "", extra=extra) as public:
        public.serve()
        two_repositories(public)
        assert link(public, "evil.example").startswith("<https://registry.example/hf/api/models?")


def test_hub_clients_list_all_pages_or_say_that_they_cannot(sites: Sites, tmp_path: Path) -> None:
    """By a host name, which no setting confirms: an error, neither a part of the list nor a request elsewhere."""
    site = sites("sqlite", auth="token")
    two_repositories(site)
    port = site.url.rpartition(":")[2]

    def pages(host: str, version: str) -> dict[str, Any]:
        found: dict[str, Any] = run(
            python_with(version),
            "hub_pages.py",
            {},
            endpoint=f"http://{host}:{port}/hf",
            home=tmp_path / version,
            token=site.token("admin"),
        )
        return found

    for version in VERSIONS:
        whole = pages("127.0.0.1", version)
        assert whole["error"] is None
        assert {f"{SHARED}/base", f"{SHARED}/copy"} <= set(whole["found"])
        cut = pages("registry.example", version)
        assert (len(cut["found"]), cut["error"]) == (1, ERRORS_OF[version])


ERRORS_OF = {"2.4": "UnsupportedProtocol", "1.33.0": "UnsupportedProtocol", "0.36.2": "MissingSchema"}


@pytest.mark.parametrize("url", ["registry.example", "ftp://a", "https://a/path", "https://user@a"])
def test_what_is_no_public_url(url: str) -> None:
    with pytest.raises(RegistryError, match="LORA_REG_PUBLIC_URL"):
        settings.load({"LORA_REG_PUBLIC_URL": url})


@pytest.mark.parametrize("folder", ["/proc", "/proc/new"])
def test_a_data_folder_that_cannot_be_written_to_is_a_sentence(folder: str) -> None:
    with pytest.raises(RegistryError, match=f"data folder {folder} cannot be written to: .*") as caught:
        settings.load({"LORA_REG_DATA": folder}).make_data_folder()
    assert caught.value.code == "storage-unavailable"


def test_writers_that_wait_for_a_locked_database_stop_no_read(sites: Sites) -> None:
    """Before, 30 of them held all threads, and a read took 29.5 seconds."""
    site = sites("sqlite")
    site.need_base()
    path = site.repository()
    holder = sqlite3.connect(site.data / "registry.sqlite3", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    begun = threading.Barrier(31)

    def move(number: int) -> httpx.Response:
        with site.connect() as client:
            begun.wait()
            return client.put(f"{path}/tags/t{number}", json={"target": "v1"})

    try:
        with ThreadPoolExecutor(30) as pool:
            moves = [pool.submit(move, number) for number in range(30)]
            begun.wait()
            with httpx.Client(base_url=site.url, timeout=5) as client:
                for _ in range(5):
                    assert client.get(f"{path}/versions/v1").status_code == 200
            assert not any(done.done() for done in moves)
            holder.execute("ROLLBACK")
            assert {done.result().status_code for done in moves} <= {200, 201}
    finally:
        holder.close()
