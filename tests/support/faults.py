"""A TCP proxy that breaks connections on order, or answers in the place of an S3 server."""

from __future__ import annotations

import asyncio
import random

from tests.support.proxy import AnswerInstead, Proxy

ERRORS = {500: "InternalError", 503: "SlowDown"}
_METHODS = (b"GET /", b"PUT /", b"POST /", b"HEAD /", b"DELETE /")


class FaultProxy(Proxy):
    """Passes everything on until told otherwise. The settings may be changed at any time, from any thread.

    `refusing`: drop new connections at once. `delay`: seconds to hold every piece. `cut_up_after`, `cut_down_after`:
    cut every connection once so many bytes in all have gone to the server, or come from it, since `reset`; None: never.
    `cuts` limits how many connections are cut; None: all.
    `answering`: a status of ERRORS, which requests are answered with. `share`: of the requests, for `answering`, and of
    the pieces, for `cutting`, which ends their connections.
    """

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.reset()

    def reset(self) -> None:
        self.refusing = False
        self.delay = 0.0
        self.cut_up_after: int | None = None
        self.cut_down_after: int | None = None
        self.cuts: int | None = None
        self.answering: int | None = None
        self.cutting = False
        self.share = 1.0
        self.cut_count = 0
        self._random = random.Random(1)
        self.passed = {True: 0, False: 0}

    async def refuse(self) -> bool:
        return self.refusing

    async def pass_on(self, piece: bytes, *, upwards: bool) -> bytes | None:
        if self.delay:
            await asyncio.sleep(self.delay)
        struck = (self.answering is not None or self.cutting) and self._random.random() < self.share
        if struck and self.answering is not None and upwards and piece.startswith(_METHODS):
            raise AnswerInstead(_error(self.answering, head=piece.startswith(b"HEAD")))
        if struck and self.cutting:
            return None
        limit = self.cut_up_after if upwards else self.cut_down_after
        self.passed[upwards] += len(piece)
        exhausted = self.cuts is not None and self.cut_count >= self.cuts
        if limit is not None and self.passed[upwards] > limit and not exhausted:
            self.cut_count += 1
            return None
        return piece


def _error(status: int, *, head: bool) -> bytes:
    code = ERRORS[status]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Reduce your request rate.</Message></Error>"
    lines = (
        f"HTTP/1.1 {status} {code}",
        "Content-Type: application/xml",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return ("\r\n".join(lines) + "\r\n\r\n" + ("" if head else body)).encode()
