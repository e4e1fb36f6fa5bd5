"""What a worker asks of a Hub, and which redirects it follows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lora_contract.errors import RegistryError
from lora_registry.db.tables import WeightSource
from lora_registry.worker.hub import MAX_REDIRECTS, HubFiles, read_token

BODY = bytes(range(256)) * 4
Reply = tuple[int, dict[str, str], bytes]


class Server(ThreadingHTTPServer):
    """Answers what `reply` says, and keeps the headers that it was asked with."""

    daemon_threads = True

    def __init__(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                asked = {key.lower(): value for key, value in self.headers.items()}
                server.asked.append(asked)
                status, headers, body = server.reply(asked)
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, str]] = []
        self.reply: Callable[[dict[str, str]], Reply] = ranged
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


def ranged(asked: dict[str, str], size: int = len(BODY)) -> Reply:
    first, last = (int(text) for text in asked["range"].removeprefix("bytes=").split("-"))
    return 206, {"Content-Range": f"bytes {first}-{last}/{size}"}, BODY[first : last + 1]


@contextmanager
def running() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def store() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def hub() -> Iterator[Server]:
    with running() as server:
        yield server


def read(endpoint: str, start: int = 0, length: int = len(BODY), token: str | None = None) -> bytes:
    source = WeightSource(
        version_id=1, endpoint=endpoint, repository="a/b", commit_id="0" * 40, author="x", created_at=0
    )
    with HubFiles(source, token) as files, files.open("model.safetensors", start, length, len(BODY)) as chunks:
        return b"".join(chunks)


def refused(hub: Server, start: int = 0, length: int = len(BODY)) -> RegistryError:
    with pytest.raises(RegistryError) as raised:
        read(hub.url, start, length)
    return raised.value


def test_a_range_is_read(hub: Server) -> None:
    assert read(hub.url, 100, 50) == BODY[100:150]
    assert hub.asked[0]["range"] == "bytes=100-149"
    assert hub.asked[0]["accept-encoding"] == "identity"


def test_the_token_is_not_sent_to_the_store(hub: Server, store: Server) -> None:
    hub.reply = lambda _: (302, {"Location": f"{store.url}/x?signature=secret"}, b"")
    assert read(hub.url, token="hf_secret") == BODY
    assert hub.asked[0]["authorization"] == "Bearer hf_secret"
    assert "authorization" not in store.asked[0]


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/latest/meta-data/", "http://[fe80::1]/x", "file:///etc/passwd", "http://user@127.0.0.1/x"],
)
def test_redirects_that_are_not_followed(hub: Server, location: str) -> None:
    hub.reply = lambda _: (302, {"Location": location}, b"")
    error = refused(hub)
    assert error.code == "forbidden"
    assert location not in str(error)


def test_https_is_not_left() -> None:
    source = WeightSource(
        version_id=1, endpoint="https://hub", repository="a/b", commit_id="0" * 40, author="x", created_at=0
    )
    with HubFiles(source, None) as files, pytest.raises(RegistryError, match="a URL that is not followed"):
        files._redirected("https://hub/a", "http://elsewhere/a", "model.safetensors")


def test_redirects_end(hub: Server) -> None:
    hub.reply = lambda _: (302, {"Location": "/again?signature=secret"}, b"")
    error = refused(hub)
    assert (error.code, "secret" in str(error)) == ("unavailable", False)
    assert len(hub.asked) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "forbidden"), (403, "forbidden"), (404, "not-found"), (429, "unavailable"), (503, "unavailable")],
)
def test_refusals(hub: Server, status: int, code: str) -> None:
    hub.reply = lambda _: (status, {}, b"")
    assert refused(hub).code == code


def test_a_file_of_another_length_is_not_the_pinned_one(hub: Server) -> None:
    hub.reply = lambda asked: ranged(asked, size=99_999)
    error = refused(hub, 0, 10)
    assert error.code == "digest-mismatch"
    assert "has 99999 bytes" in error.detail


def test_a_hub_without_ranges_sends_short_files_alone(hub: Server) -> None:
    hub.reply = lambda _: (200, {}, BODY)
    assert read(hub.url) == BODY
    assert refused(hub, 0, 10).code == "forbidden"


def test_a_cut_is_an_error_that_a_retry_may_help(hub: Server) -> None:
    hub.reply = lambda asked: (206, {"Content-Length": "1024", "Content-Range": "bytes 0-1023/1024"}, BODY[:100])
    assert refused(hub).kind.retryable


def test_nobody_answers() -> None:
    with pytest.raises(RegistryError) as raised:
        read("http://127.0.0.1:9")
    assert raised.value.kind.retryable


@pytest.mark.parametrize("text", ["", "\n", "hf_\x07\n", "ü"])
def test_a_file_without_a_token(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text, "utf-8")
    with pytest.raises(RegistryError) as raised:
        read_token(tmp_path / "token")
    assert text.strip() == "" or text.strip() not in str(raised.value)
