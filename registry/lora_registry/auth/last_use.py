"""When a token was last used: written beside the requests, at most once a minute for each token."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from sqlalchemy import or_
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import col, update

from lora_contract.errors import RegistryError
from lora_registry.auth.tokens import Verified
from lora_registry.context import Context
from lora_registry.db.tables import Token
from lora_registry.runtime.clock import now

EVERY: Final = 60 * 1_000_000
"""In microseconds."""

log = logging.getLogger("lora_registry.auth")


class LastUse:
    """Record uses in a thread of its own: a database that is locked or read-only neither delays nor fails a request."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="last-use")
        self._lock = threading.Lock()
        self._tried: dict[int, int] = {}

    def note(self, used: Verified) -> None:
        at = now()
        with self._lock:
            last = max(used.last_used_at or 0, self._tried.get(used.token_id, 0))
            if at - last < EVERY:
                return
            self._tried[used.token_id] = at
        self._thread.submit(self._write, used.token_id, at)

    def close(self) -> None:
        """Drop what is not written yet."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _write(self, token_id: int, at: int) -> None:
        stale = or_(col(Token.last_used_at).is_(None), col(Token.last_used_at) < at - EVERY)
        try:
            with self._ctx.db.write() as session:
                session.exec(update(Token).where(col(Token.id) == token_id, stale).values(last_used_at=at))
        except (RegistryError, SQLAlchemyError) as error:
            log.debug("the last use of token %d was not recorded: %s", token_id, error)
