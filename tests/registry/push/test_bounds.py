"""Files that are made to cost memory and time: they are measured first, and checked in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from lora_registry.push import check
from tests.registry.conftest import Sites
from tests.registry.site import SHARED, Site, adapter_files, base_files, problem, unique, until
from tests.support import service
from tests.support.push import push

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def local(sites: Sites) -> Site:
    site = sites("sqlite")
    site.need_base()
    return site


def send(site: Site, files: dict[str, bytes]) -> httpx.Response:
    return push(site.client, "ns", unique("bound"), "adapter", files, base=f"{SHARED}/base")


def vocabulary(tokens: int) -> bytes:
    merges = [[f"t{number}", "x"] for number in range(tokens)]
    return json.dumps(
        {"model": {"vocab": {f"t{number}": number for number in range(tokens)}, "merges": merges}}
    ).encode()


def test_a_large_tokenizer_is_checked_in_a_child(local: Site) -> None:
    answer = send(local, {**adapter_files(1), "tokenizer.json": vocabulary(60_000)})
    assert answer.status_code == 201, answer.text
    assert local.thread is not None
    assert local.thread.context.checks.templates()


def test_findings_come_from_a_child_as_from_this_process(local: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = {
        **adapter_files(1),
        "tokenizer.json": b'{"a":1,"a":1}',
        "tokenizer_config.json": b'{"auto_map":{"a":"b"}}',
    }
    here = problem(send(local, spoiled), "rejected")
    monkeypatch.setattr(check, "INLINE", 0)
    there = problem(send(local, spoiled), "rejected")
    assert there["findings"] == here["findings"]
    assert {finding["code"] for finding in here["findings"]} >= {"bad-json", "auto-map"}
    for seed in (1, 2):
        assert send(local, adapter_files(seed)).status_code == 201


@pytest.mark.parametrize(("name", "value"), [("MEMORY", 8 << 20), ("SECONDS", 0)])
def test_a_child_that_needs_too_much_is_ended(
    local: Site, monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    monkeypatch.setattr(check, name, value)
    answer = send(local, {**adapter_files(1), "tokenizer.json": vocabulary(400_000)})
    assert "cannot be checked within" in problem(answer, "rejected")["detail"]


def test_a_check_that_was_killed_is_not_blamed_on_the_files(local: Site) -> None:
    files = {**adapter_files(1), "tokenizer.json": vocabulary(400_000)}
    assert local.thread is not None
    checks = local.thread.context.checks
    with ThreadPoolExecutor(1) as pool:
        pushed = pool.submit(send, local, files)
        until(lambda: bool(checks._running))
        os.kill(next(iter(checks._running)).pid, signal.SIGKILL)
        assert "interrupted" in problem(pushed.result(), "unavailable")["detail"]
    assert send(local, files).status_code == 201


def header(body: bytes) -> bytes:
    return struct.pack("<Q", len(body)) + body


BOMBS = {
    "metadata": lambda: {WEIGHTS: header(b'{"__metadata__":{' + b",".join(b'"%07d":""' % n for n in range(2_000_000)) + b"}}")},
    "brackets": lambda: {WEIGHTS: header(b'{"a":[' + b"[]," * 9_000_000 + b"[]]}")},
    "objects": lambda: {"tokenizer.json": b"[" + b"{}," * 10_000_000 + b"{}]"},
    "configuration": lambda: {"adapter_config.json": b'{"peft_type":"LORA","x":[' + b"{}," * 2_000_000 + b"{}]}"},
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_the_service_nothing(heavy: tuple[service.Service, httpx.Client], name: str) -> None:
    """Before, 28 MB of metadata keys took 590 MB and stalled every other request for 9 seconds."""
    running, client = heavy
    files = {**adapter_files(1), **BOMBS[name]()}
    with watched(running) as cost:
        answer = push(client, "ns", unique("bomb"), "adapter", files, base=f"{SHARED}/base")
    problem(answer, "rejected")
    assert cost["megabytes"] < 64
    assert cost["stall"] < 5


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[service.Service, httpx.Client]]:
    with (
        service.running(tmp_path_factory.mktemp("heavy")) as running,
        httpx.Client(base_url=running.url, timeout=120) as client,
    ):
        push(client, SHARED, "base", "base", base_files())
        files = {**adapter_files(1), "README.md": bytes(32 << 20)}
        assert push(client, "ns", "warm", "adapter", files, base=f"{SHARED}/base", accept_base=True).status_code == 201
        yield running, client


@contextmanager
def watched(running: service.Service) -> Iterator[dict[str, float]]:
    """The memory that the API gained at most, in MiB, and the longest answer of /healthz meanwhile, in seconds."""
    cost, done = {"stall": 0.0}, threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=running.url, timeout=60) as client:
            while not done.wait(0.01):
                begun = time.monotonic()
                client.get("/healthz")
                cost["stall"] = max(cost["stall"], time.monotonic() - begun)

    before, watcher = peak(running.process.pid), threading.Thread(target=watch)
    watcher.start()
    try:
        yield cost
    finally:
        done.set()
        watcher.join()
        cost["megabytes"] = peak(running.process.pid) - before


def peak(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
