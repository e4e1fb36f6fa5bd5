"""An asyncio TCP proxy in a thread of its own: the base of the TLS front and of the fault proxy."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from typing import Self

PIECE = 256 * 1024


ANSWER_SECONDS = 1.0


class AnswerInstead(Exception):  # noqa: N818  no error: what the proxy says in the server's place
    """Raised by `pass_on`: send these bytes back to the client, and end the connection."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data


class Proxy:
    """Listens on a free port of 127.0.0.1 and passes bytes both ways to `target_port`, as long as it is open."""

    def __init__(self, target_port: int, tls: ssl.SSLContext | None = None) -> None:
        self.target_port = target_port
        self.port = 0
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def refuse(self) -> bool:
        """Asked for each connection; for subclasses."""
        return False

    async def pass_on(self, piece: bytes, *, upwards: bool) -> bytes | None:
        """What to send instead of the piece, or None to cut the connection; for subclasses."""
        return piece

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await self.refuse():
            return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        pumps = [
            asyncio.ensure_future(self._pump(reader, up_writer, upwards=True)),
            asyncio.ensure_future(self._pump(up_reader, writer, upwards=False)),
        ]
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            answer = next(iter(done)).exception()
            if isinstance(answer, AnswerInstead):
                writer.write(answer.data)
                await writer.drain()
                # A client that still sends its body would be reset before it reads the answer.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ANSWER_SECONDS):
                        while await reader.read(PIECE):
                            pass
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            up_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, upwards: bool) -> None:
        while piece := await reader.read(PIECE):
            passed = await self.pass_on(piece, upwards=upwards)
            if passed is None:
                return
            writer.write(passed)
            await writer.drain()
        # Let what was handed on leave before the connection is dropped.
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
