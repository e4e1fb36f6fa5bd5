"""What the soaks have in common: a database and a store of their own, which may be killed, and a service on them."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.registry.keeping.shelves import Bucket, Folder, Shelf, s3_environment
from tests.registry.site import Site, open_site
from tests.support.faults import FaultProxy
from tests.support.postgres import OwnServer, own_server

PREFIX = "soak"
HASTE = {
    "LORA_REG_GC_SECONDS": "1",
    "LORA_REG_GC_GRACE_SECONDS": "2",
    **{f"LORA_REG_{kind}_PER_MINUTE": "0" for kind in ("READS", "WRITES", "JOBS")},
}
"""Garbage is collected every second with a grace of two, and nobody is slowed down."""


@dataclass(frozen=True)
class Ground:
    """A site with its base, and what it stands on. postgres: None on SQLite. s3, proxy before it: None over a folder."""

    site: Site
    folder: Path
    shelf: Shelf
    postgres: OwnServer | None
    s3: Any
    proxy: FaultProxy | None


@contextmanager
def ground(
    database: str, store: str, *, extra: Mapping[str, str] | None = None, arguments: tuple[str, ...] = ()
) -> Iterator[Ground]:
    """Start a service, on PostgreSQL with a worker.

    Args:
        store: `folder`, or `s3`: ministack, which writes each object to its disk before it answers.
        extra: settings beside those of HASTE.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = stack.enter_context(own_server()) if database == "postgresql" else None
        chosen = {**HASTE, **(extra or {})}
        s3, proxy = None, None
        if store == "s3":
            from tests.support.s3 import ministack

            (folder / "s3").mkdir()
            s3 = stack.enter_context(ministack(folder / "s3"))
            proxy = stack.enter_context(FaultProxy(int(s3.http.rpartition(":")[2])))
            chosen |= s3_environment(s3, PREFIX) | {"LORA_REG_S3_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
        url = "" if postgres is None else postgres.url
        site = stack.enter_context(open_site(database, folder / "site", url, extra=chosen, arguments=arguments))
        site.start(by=subprocess.Popen)
        if postgres is not None:
            site.worker()
        site.need_base()
        shelf: Shelf = Folder(site.data) if s3 is None else Bucket(s3, PREFIX)
        yield Ground(site, folder, shelf, postgres, s3, proxy)
