"""Connections of the API: those that send no request, or do not read its response, end."""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS: Final = 30.0
"""A request line with its headers must arrive within this time, from its first byte or from the connection's start."""

STUCK_SECONDS: Final = 300.0
"""A response of which a full send buffer is not read for this long is given up."""


class Connection(H11Protocol):
    """uvicorn ends connections that stay silent between two requests. This ends also those that are silent at their
    start, send headers byte by byte, keep sending a body that was answered already, or do not read."""

    _head: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._expect_head()
        else:
            self._stop("_head")

    def on_response_complete(self) -> None:
        self._stop("_head")
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self._stuck or self.loop.call_later(STUCK_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop("_stuck")
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop("_head")
        self._stop("_stuck")
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        # Not restarted by later bytes: a header may come slowly, but not for ever.
        self._head = self._head or self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop(self, name: str) -> None:
        timer: asyncio.TimerHandle | None = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)
