"""Hold off garbage collections while a backup runs, so that they do not remove what its database names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from lora_registry.keeping import lease
from lora_registry.keeping.lease import Lease

TASKS: Final = ("gc", "orphans")
_RENEW_SECONDS: Final = lease.SECONDS / 5
_RETRY_SECONDS: Final = 2.0


@contextmanager
def collections_held(engine: Engine) -> Iterator[None]:
    """Claim the collectors' leases until the end of the block. One that runs already, or that a backup left which was
    killed, is claimed as soon as it is free: the grace of collections covers that time."""
    held: dict[str, Lease | None] = dict.fromkeys(TASKS)
    stopped = threading.Event()

    def claim() -> bool:
        for name, mine in held.items():
            with suppress(SQLAlchemyError):  # the backup itself tells when the database does not answer
                if mine is None or not mine.renew():
                    held[name] = lease.claim(engine, name)
        return None not in held.values()

    def hold() -> None:
        while not stopped.wait(_RENEW_SECONDS if claim() else _RETRY_SECONDS):
            pass

    claim()
    thread = threading.Thread(target=hold, name="backup-hold", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        for mine in held.values():
            if mine is not None:
                with suppress(SQLAlchemyError):
                    mine.release(done=False)
