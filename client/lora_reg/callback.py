"""A server on a free port of this machine, for the one redirect with which an OpenID provider ends a sign-in."""

from __future__ import annotations

import secrets
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Final, Self
from urllib.parse import parse_qsl, urlsplit

from lora_contract.errors import RegistryError

WAIT_SECONDS: Final = 300
_PAGE: Final = "<!doctype html><meta charset=utf-8><title>lora-reg</title><p>%s You can close this page."


class Callback:
    """`url` is where the provider is to redirect to. state: what the redirect must repeat."""

    def __init__(self, state: str) -> None:
        self._answer: dict[str, str] = {}
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            timeout = 2  # browsers open connections ahead and send nothing

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = dict(parse_qsl(parts.query))
                mine = parts.path == "/callback" and secrets.compare_digest(
                    query.get("state", "").encode(), state.encode()
                )
                if mine:
                    answer.update(query)
                text = "Signed in." if "code" in query else "The provider refused to sign you in."
                body = (_PAGE % (text if mine else "Nothing to see here.")).encode()
                self.send_response(200 if mine else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Referrer-Policy", "no-referrer")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Print nothing: the line would hold the code."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._server.timeout = 1.0
        self.url = f"http://127.0.0.1:{self._server.server_port}/callback"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.server_close()

    def wait(self) -> dict[str, str]:
        end = time.monotonic() + WAIT_SECONDS
        while not self._answer:
            if time.monotonic() > end:
                raise RegistryError(
                    "unauthenticated",
                    f"Nobody signed in within {WAIT_SECONDS} seconds.",
                    hint="Try again; without a browser on this machine, add --device.",
                )
            self._server.handle_request()
        return self._answer
