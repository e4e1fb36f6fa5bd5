"""Retries, redirects and problems, against real HTTP servers."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lora_contract.errors import RegistryError
from lora_reg.transport import Transport

Reply = tuple[int, dict[str, str], bytes]


class Scripted:
    """A server that gives the replies of a list, then repeats the last; keeps what it was asked."""

    def __init__(self) -> None:
        self.replies: list[Reply | None] = [(200, {}, b"{}")]
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                script.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                reply = script.replies.pop(0) if len(script.replies) > 1 else script.replies[0]
                if reply is None:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                status, headers, content = reply
                self.send_response(status)
                for key, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def scripted() -> Iterator[Callable[[], Scripted]]:
    servers: list[Scripted] = []

    def make() -> Scripted:
        servers.append(Scripted())
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def transports() -> Iterator[Callable[..., tuple[Transport, list[float]]]]:
    made: list[Transport] = []

    def make(url: str, token: str | None = None) -> tuple[Transport, list[float]]:
        waits: list[float] = []
        made.append(Transport(url, token, sleep=waits.append))
        return made[-1], waits

    yield make
    for transport in made:
        transport.close()


def problem(code: str, status: int, **more: Any) -> Reply:
    document = {
        "type": "t", "title": "t", "status": status, "detail": "The detail.", "code": code, "hint": "The way out.", **more
    }  # fmt: skip
    return status, {"Content-Type": "application/problem+json"}, json.dumps(document).encode()


def test_a_problem_becomes_an_error_with_everything_it_says(scripted, transports) -> None:
    server = scripted()
    finding = {"code": "c", "severity": "error", "message": "m"}
    server.replies = [problem("rejected", 422, findings=[finding, finding], current={"generation": 3}, request_id="r1")]
    transport, _ = transports(server.url)
    with pytest.raises(RegistryError) as caught:
        transport.request("GET", transport.url("/x"))
    error = caught.value
    assert (error.code, error.detail, error.hint) == ("rejected", "The detail.", "The way out.")
    assert len(error.facts["findings"]) == 2
    assert error.facts["findings"][0]["message"] == "m"
    assert error.facts["current"] == {"generation": 3}
    assert error.facts["request_id"] == "r1"
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "code", "exit_status"), [(404, "not-found", 3), (401, "unauthenticated", 4), (418, "internal", 1)]
)
def test_an_answer_without_a_problem_document_goes_by_its_status(
    scripted, transports, status, code, exit_status
) -> None:
    server = scripted()
    server.replies = [(status, {}, b"<html>")]
    transport, _ = transports(server.url)
    with pytest.raises(RegistryError) as caught:
        transport.request("POST", transport.url("/x"))
    assert (caught.value.code, caught.value.kind.exit) == (code, exit_status)


def test_a_code_of_a_newer_server_keeps_its_sentences(scripted, transports) -> None:
    server = scripted()
    server.replies = [problem("from-the-future", 409)]
    transport, _ = transports(server.url)
    with pytest.raises(RegistryError) as caught:
        transport.request("GET", transport.url("/x"))
    assert (caught.value.code, caught.value.detail) == ("conflict", "The detail.")


def test_what_may_pass_is_tried_again_with_growing_waits(scripted, transports) -> None:
    server = scripted()
    server.replies = [problem("unavailable", 503), None, (502, {}, b"bad gateway"), (200, {}, b"ok")]
    transport, waits = transports(server.url)
    assert transport.request("PUT", transport.url("/x"), content=b"body").content == b"ok"
    assert [body for _, _, _, body in server.asked] == [b"body"] * 4
    assert len(waits) == 3
    assert waits[0] < waits[2]


def test_retry_after_is_heeded(scripted, transports) -> None:
    server = scripted()
    status, headers, body = problem("rate-limited", 429)
    server.replies = [(status, {**headers, "Retry-After": "7"}, body), (200, {}, b"ok")]
    transport, waits = transports(server.url)
    transport.request("GET", transport.url("/x"))
    assert waits == [7.0]


def test_a_post_is_sent_twice_only_with_an_idempotency_key(scripted, transports) -> None:
    server = scripted()
    transport, _ = transports(server.url)
    server.replies = [None, (200, {}, b"ok")]
    with pytest.raises(RegistryError) as caught:
        transport.request("POST", transport.url("/x"), content=b"1")
    assert caught.value.code == "unavailable"
    assert len(server.asked) == 1
    server.replies, server.asked = [None, (200, {}, b"ok")], []
    transport.request("POST", transport.url("/x"), content=b"2", headers={"Idempotency-Key": "k"})
    assert [headers["idempotency-key"] for _, _, headers, _ in server.asked] == ["k", "k"]


def test_it_gives_up(scripted, transports) -> None:
    server = scripted()
    server.replies = [problem("unavailable", 503)]
    transport, waits = transports(server.url)
    with pytest.raises(RegistryError) as caught:
        transport.request("GET", transport.url("/x"))
    assert caught.value.code == "unavailable"
    assert len(server.asked) == 5
    assert len(waits) == 4


def test_nothing_listening_names_the_address_and_the_command(transports) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    transport, _ = transports(url)
    with pytest.raises(RegistryError) as caught:
        transport.request("GET", transport.url("/x"))
    assert (caught.value.code, caught.value.kind.exit) == ("unavailable", 10)
    assert url in caught.value.detail
    assert "lora-registry serve" in caught.value.hint


def test_the_token_stays_with_its_origin(scripted, transports) -> None:
    registry, store = scripted(), scripted()
    store.replies = [(200, {}, b"bytes")]
    registry.replies = [(307, {"Location": f"{store.url}/blob?signature=secret"}, b"")]
    transport, _ = transports(registry.url, "hf_token")
    assert transport.request("GET", transport.url("/x"), headers={"Range": "bytes=1-"}).content == b"bytes"
    assert registry.asked[0][2]["authorization"] == "Bearer hf_token"
    assert "authorization" not in store.asked[0][2]
    assert store.asked[0][1] == "/blob?signature=secret"
    assert store.asked[0][2]["range"] == "bytes=1-"


def test_a_redirect_within_the_origin_keeps_the_token(scripted, transports) -> None:
    registry = scripted()
    registry.replies = [(307, {"Location": "/y"}, b""), (200, {}, b"ok")]
    transport, _ = transports(registry.url, "hf_token")
    transport.request("GET", transport.url("/x"))
    assert [headers["authorization"] for _, _, headers, _ in registry.asked] == ["Bearer hf_token"] * 2


def test_a_write_is_not_redirected(scripted, transports) -> None:
    registry, other = scripted(), scripted()
    registry.replies = [(307, {"Location": f"{other.url}/y"}, b"")]
    transport, _ = transports(registry.url)
    assert transport.request("PUT", transport.url("/x"), content=b"secret").status_code == 307
    assert other.asked == []


def test_a_loop_of_redirects_ends(scripted, transports) -> None:
    registry = scripted()
    registry.replies = [(307, {"Location": "/x"}, b"")]
    transport, _ = transports(registry.url)
    with pytest.raises(RegistryError, match="redirects"):
        transport.request("GET", transport.url("/x"))


@pytest.mark.parametrize("location", ["file:///etc/passwd", "http://[::1", "//"])
def test_a_redirect_to_nowhere_is_an_error(scripted, transports, location) -> None:
    registry = scripted()
    registry.replies = [(307, {"Location": location}, b"")]
    transport, _ = transports(registry.url)
    with pytest.raises(RegistryError) as caught:
        transport.request("GET", transport.url("/x"))
    assert caught.value.code == "unavailable"


def test_an_error_of_the_store_shows_no_signature(scripted, transports) -> None:
    registry, store = scripted(), scripted()
    store.replies = [(403, {}, b"<Error>signature=secret</Error>")]
    registry.replies = [(307, {"Location": f"{store.url}/blob?signature=secret"}, b"")]
    transport, _ = transports(registry.url)
    with pytest.raises(RegistryError) as caught:
        transport.request("GET", transport.url("/x"))
    assert caught.value.code == "storage-unavailable"
    assert caught.value.facts["status"] == 403
    assert "secret" not in caught.value.detail + caught.value.hint
    assert len(store.asked) == 1
