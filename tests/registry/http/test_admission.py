"""What a request must meet before its body is read: a caller, an origin, a type, and text that means what it shows."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.registry.conftest import Sites
from tests.registry.site import Site, problem
from tests.support import service

MERGE = "/api/v1/merges"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def local(sites: Sites) -> Site:
    """A service without login."""
    return sites("sqlite")


@pytest.mark.parametrize("host", ["rebound.example", "127.0.0.1.rebound.example", "localhost.example:80", "10.0.0.1"])
def test_without_login_other_host_names_are_refused(local: Site, host: str) -> None:
    for method, path, body in (("GET", "/api/v1/repositories", None), ("POST", MERGE, {}), ("DELETE", MERGE, None)):
        answer = local.client.request(method, path, headers={"Host": host}, json=body)
        if method != "DELETE":
            assert host in problem(answer, "forbidden")["detail"]
    assert local.client.get("/hf/api/models", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "127.8.8.8", "[::1]:8750", "a.localhost"])
def test_without_login_loopback_host_names_are_answered(local: Site, host: str) -> None:
    assert local.client.get("/api/v1/repositories", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": ""},
        {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_without_login_a_page_of_another_origin_changes_nothing(local: Site, headers: dict[str, str]) -> None:
    local.need_base()
    path, client = local.repository(versions=2), local.client
    assert client.put(f"{path}/tags/prod", json={"target": "v1"}).status_code == 200
    for method, target, body in (
        ("PUT", f"{path}/tags/prod", {"target": "v2"}),
        ("POST", f"{path}/tags/prod/rollback", {}),
        ("POST", f"{path}/promotions", {"version": "v2", "tag": "prod", "force": True, "reason": "csrf"}),
        ("POST", MERGE, {}),
        ("PUT", f"{path}/versions/v1/yank", {"reason": "bad"}),
        ("DELETE", f"{path}/versions/v2", None),
    ):
        problem(client.request(method, target, json=body, headers=headers), "forbidden")
    assert client.get(f"{path}/tags/prod", headers=headers).json()["version"]["number"] == 1
    assert client.get(f"{path}/versions/v2").status_code == 200


def test_a_page_of_the_service_itself_may_change_it(local: Site) -> None:
    own = {"Origin": local.url, "Sec-Fetch-Site": "same-origin"}
    problem(local.client.post(MERGE, json={}, headers=own), "invalid-request")


@pytest.mark.parametrize("auth", ["none", "token"])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_json_body_must_be_declared(sites: Sites, auth: str, kind: str) -> None:
    site = sites("sqlite", auth=auth)
    with site.connect(site.token("admin") if auth == "token" else None) as client:
        problem(client.post(MERGE, content=b"{}", headers={"Content-Type": kind}), "unsupported-media-type")


def test_the_caller_is_known_before_a_body_is_read(sites: Sites) -> None:
    """The answer comes while the rest of the body still waits to be sent."""
    address = httpx.URL(sites("sqlite", auth="token").url)
    head = (
        f"POST {MERGE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 900000\r\n\r\n"
    )
    with socket.create_connection((address.host, address.port or 80), timeout=20) as connection:
        connection.sendall(head.encode() + b"{")
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("byte", [b"\\", b"["])
@pytest.mark.parametrize("known", [True, False])
def test_a_large_body_stalls_nobody_and_is_not_kept(tmp_path: Path, byte: bytes, known: bool) -> None:
    """Before, one of 63 MB stalled the service for 15 seconds and took 2.2 GB."""
    auth = "none" if known else "token"
    with service.running(tmp_path, extra={"LORA_REG_AUTH": auth}) as running:
        peak, slowest, done = _peak(running.process.pid), 0.0, threading.Event()

        def watch() -> None:
            nonlocal slowest
            with httpx.Client(base_url=running.url) as client:
                while not done.is_set():
                    begun = time.monotonic()
                    client.get("/healthz")
                    slowest = max(slowest, time.monotonic() - begun)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            answer = httpx.post(running.url + MERGE, content=byte * 63_000_000, headers=JSON, timeout=60)
            assert answer.status_code == (413 if known else 401)
        except (httpx.WriteError, httpx.ReadError):
            pass  # it was cut off while it sent
        finally:
            done.set()
            watcher.join()
        assert _peak(running.process.pid) - peak < 64
        assert slowest < 5


def _peak(pid: int) -> float:
    """The largest resident size of a process so far, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def test_json_bodies_end_at_a_mebibyte(local: Site) -> None:
    problem(local.client.post(MERGE, json={"to": "x" * (1 << 20)}), "too-large")


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"to":"a/b","to":"a/c"}', "the key 'to' twice"),
        (b'{"to":"a/b","adapters":[{"adapter":"x","adapter":"y"}]}', "the key 'adapter' twice"),
        (b"[" * 149_000, "nested too deeply"),
        (b"[" * 200_000, "more than 150000 values"),
        (b'{"to":[' + b"{}," * 340_000 + b"{}]}", "more than 150000 values"),
        (rb'{"to":"a\u0000b"}', "NUL"),
        (rb'{"to":"a\\\u0000b"}', "NUL"),
    ],
)
def test_bodies_that_mean_something_else_than_they_show(local: Site, body: bytes, found: str) -> None:
    answer = local.client.post(MERGE, content=body, headers=JSON)
    assert found in problem(answer, "invalid-request")["detail"]


def test_an_escaped_backslash_before_u0000_is_no_nul(local: Site) -> None:
    answer = local.client.post(MERGE, content=rb'{"to":"a\\u0000b"}', headers=JSON)
    assert "NUL" not in problem(answer, "invalid-request")["detail"]


def test_a_reason_has_at_most_4096_characters(local: Site) -> None:
    local.need_base()
    path, client = local.repository(), local.client
    version, reason = "v1", "x" * 4097
    for method, target, body in (
        ("PUT", f"{path}/tags/prod", {"target": version}),
        ("POST", f"{path}/tags/prod/rollback", {}),
        ("PUT", f"{path}/versions/v1/yank", {}),
        ("POST", f"{path}/promotions", {"version": version, "tag": "prod"}),
        ("POST", f"{path}/approvals", {"version": version, "tag": "prod"}),
    ):
        answer = client.request(method, target, json={**body, "reason": reason})
        assert "4096" in problem(answer, "invalid-request")["detail"], target
    assert client.put(f"{path}/tags/prod", json={"target": version, "reason": reason[1:]}).status_code == 200
