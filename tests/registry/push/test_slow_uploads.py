"""Uploads whose bytes do not come: they stop nobody else, and end."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from lora_registry.http import bodies, connections
from tests.registry.conftest import Sites
from tests.registry.site import SHARED, Site, adapter_files, unique, until
from tests.support.push import describe, push


@contextmanager
def stalled(site: Site, count: int, seed: int) -> Iterator[list[socket.socket]]:
    """So many uploads of which two bytes have come."""
    address = httpx.URL(site.url)
    files = {f"{number}.txt": f"{seed} {number}".encode() * 10 for number in range(count)}
    body = {"namespace": "ns", "name": unique("slow"), "kind": "adapter", "files": describe(files)}
    session = site.client.post("/api/v1/uploads", json=body).json()
    with contextlib.ExitStack() as stack:
        sockets = []
        for blob in session["blobs"]:
            connection = stack.enter_context(socket.create_connection((address.host, address.port or 80), timeout=20))
            path = f"/api/v1/uploads/{session['id']}/blobs/{blob['digest']}"
            head = f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {blob['size']}\r\n\r\n"
            connection.sendall(head.encode() + b"xx")
            sockets.append(connection)
        yield sockets


@pytest.fixture
def local(sites: Sites) -> Site:
    site = sites("sqlite")
    site.need_base()
    return site


def test_a_hundred_stalled_uploads_stop_no_download_and_no_push(local: Site) -> None:
    path = local.repository()
    repo_id = path.removeprefix("/api/v1/repositories/")
    before = threading.active_count()
    with stalled(local, 100, seed=1), httpx.Client(base_url=local.url, timeout=20) as client:
        time.sleep(1)  # all of them wait for bytes
        assert threading.active_count() < before + 20
        for url in (
            f"{path}/versions/v1/files/adapter_model.safetensors",
            f"/hf/{repo_id}/resolve/main/adapter_model.safetensors",
        ):
            assert client.get(url).content == adapter_files(1)["adapter_model.safetensors"]
        assert client.get(f"/hf/api/models/{repo_id}").status_code == 200
        local.pushed("ns", unique("beside"), 7)


def test_an_upload_that_stops_is_given_up(local: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "IDLE_SECONDS", 0.5)
    with stalled(local, 1, seed=2) as (connection,):
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 422 ")
        assert b"no byte arrived for 0.5 seconds" in answer


def test_an_upload_that_is_slow_is_taken(local: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "IDLE_SECONDS", 1.0)
    data = b"slow enough" * 3
    body = {"namespace": "ns", "name": unique("slow"), "kind": "adapter", "files": describe({"README.md": data})}
    session = local.client.post("/api/v1/uploads", json=body).json()
    (blob,) = session["blobs"]

    def slowly() -> Iterator[bytes]:
        for start in range(0, len(data), 6):
            time.sleep(0.3)
            yield data[start : start + 6]

    path = f"/api/v1/uploads/{session['id']}/blobs/{blob['digest']}"
    assert local.client.put(path, content=slowly(), headers={"Content-Length": str(len(data))}).status_code == 204


def test_a_large_upload_that_stalls_holds_no_thread_and_leaves_nothing(
    local: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has begun to write: a batch has come."""
    monkeypatch.setattr(bodies, "IDLE_SECONDS", 2.0)
    data = os.urandom(2 * bodies.BATCH + 5)
    body = {"namespace": "ns", "name": unique("slow"), "kind": "adapter", "files": describe({"README.md": data})}
    session = local.client.post("/api/v1/uploads", json=body).json()
    path = f"/api/v1/uploads/{session['id']}/blobs/{session['blobs'][0]['digest']}"
    temporary = local.data / "tmp"
    address = httpx.URL(local.url)
    with socket.create_connection((address.host, address.port or 80), timeout=20) as connection:
        head = f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data[:-1])
        until(lambda: any(file.stat().st_size >= bodies.BATCH for file in temporary.iterdir()))
        assert connection.recv(4096).startswith(b"HTTP/1.1 422 ")
    until(lambda: not any(temporary.iterdir()))
    assert local.client.put(path, content=data).status_code == 204


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "])
def test_a_connection_without_a_request_ends(local: Site, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    address = httpx.URL(local.url)
    with socket.create_connection((address.host, address.port or 80), timeout=20) as connection:
        connection.sendall(sent)
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < begun + 10:
                connection.sendall(b"x" if sent else b"")
                connection.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(100):
                        break
        assert time.monotonic() < begun + 10


def test_a_connection_between_two_requests_is_kept(local: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    address = httpx.URL(local.url)
    with socket.create_connection((address.host, address.port or 80), timeout=20) as connection:
        for _ in range(2):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
            time.sleep(0.5)


def test_a_response_that_nobody_reads_ends(local: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STUCK_SECONDS", 0.5)
    data, name = os.urandom(32 * 1024 * 1024), unique("unread")
    files = {**adapter_files(1), "README.md": data}
    assert push(local.client, "ns", name, "adapter", files, base=f"{SHARED}/base").status_code == 201
    address, path = httpx.URL(local.url), f"/api/v1/repositories/ns/{name}/versions/v1/files/README.md"
    with socket.create_connection((address.host, address.port or 80), timeout=20) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        time.sleep(1.5)
        received = 0
        with contextlib.suppress(ConnectionError):
            while more := connection.recv(1 << 20):
                received += len(more)
        assert received < len(data)
