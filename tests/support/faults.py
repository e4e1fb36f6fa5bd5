"""A TCP proxy that breaks connections on order."""

from __future__ import annotations

import asyncio

from tests.support.proxy import Proxy


class FaultProxy(Proxy):
    """Passes everything on until told otherwise. The settings may be changed at any time, from any thread.

    `refusing`: drop new connections at once. `delay`: seconds to hold every piece. `cut_up_after`, `cut_down_after`:
    cut every connection once so many bytes in all have gone to the server, or come from it, since `reset`; None: never.
    `cuts` limits how many connections are cut; None: all.
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
        self.cut_count = 0
        self.passed = {True: 0, False: 0}

    async def refuse(self) -> bool:
        return self.refusing

    async def pass_on(self, piece: bytes, *, upwards: bool) -> bytes | None:
        if self.delay:
            await asyncio.sleep(self.delay)
        limit = self.cut_up_after if upwards else self.cut_down_after
        self.passed[upwards] += len(piece)
        exhausted = self.cuts is not None and self.cut_count >= self.cuts
        if limit is not None and self.passed[upwards] > limit and not exhausted:
            self.cut_count += 1
            return None
        return piece
