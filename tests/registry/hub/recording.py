"""A proxy that writes down what is asked through it."""

from __future__ import annotations

import re

from tests.support.faults import FaultProxy

_LINE = re.compile(rb"^(GET|HEAD|POST|PUT|DELETE) (\S+) HTTP/1", re.MULTILINE)


class RecordingProxy(FaultProxy):
    """`sent`: all bytes that went to the server."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.sent = bytearray()

    async def pass_on(self, piece: bytes, *, upwards: bool) -> bytes | None:
        if upwards:
            self.sent += piece
        return await super().pass_on(piece, upwards=upwards)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self) -> list[str]:
        """Method and target of each request, in order."""
        return [f"{method.decode()} {target.decode()}" for method, target in _LINE.findall(self.sent)]
