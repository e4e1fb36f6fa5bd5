"""A real HTTP server between client and service: counts requests and does harm to answers on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import httpx


@dataclass
class Answer:
    """What the service said, to be changed in place. cut: send so many bytes of the body and drop the connection.
    pace: seconds to wait after each `piece` bytes."""

    method: str
    path: str
    status: int
    headers: dict[str, str]
    body: bytes
    asked: dict[str, str]
    cut: int | None = None
    pace: float = 0.0
    piece: int = 16 * 1024


@dataclass
class Front:
    """`with Front(service.url) as front`: the same API at `front.url`. `harm` sees every answer; `log` every request."""

    target: str
    harm: Callable[[Answer], None] | None = None
    log: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> Self:
        front = self
        upstream = httpx.Client(timeout=60)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                content = self.rfile.read(length)
                asked = {key.lower(): value for key, value in self.headers.items()}
                front.log.append((self.command, self.path, asked))
                passed = {
                    key: value for key, value in asked.items() if key not in ("host", "connection", "content-length")
                }
                got = upstream.request(self.command, front.target + self.path, headers=passed, content=content)
                answer = Answer(self.command, self.path, got.status_code, dict(got.headers), got.content, asked)
                if front.harm is not None:
                    front.harm(answer)
                self.send(answer)

            def send(self, answer: Answer) -> None:
                self.send_response(answer.status)
                for key, value in answer.headers.items():
                    if key.lower() not in ("connection", "transfer-encoding", "content-length", "server", "date"):
                        self.send_header(key, value)
                stated = answer.headers.get("content-length", str(len(answer.body)))
                if answer.status not in (204, 304):
                    self.send_header("Content-Length", stated)
                self.end_headers()
                body = answer.body if answer.cut is None else answer.body[: answer.cut]
                try:
                    for start in range(0, len(body), answer.piece):
                        self.wfile.write(body[start : start + answer.piece])
                        self.wfile.flush()
                        time.sleep(answer.pace)
                except OSError:
                    self.close_connection = True
                if answer.cut is not None:
                    self.close_connection = True

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass

        self._upstream = upstream
        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._upstream.close()

    def paths(self, method: str = "GET") -> list[str]:
        return [path for verb, path, _ in self.log if verb == method]
