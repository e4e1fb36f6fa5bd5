"""A child that was taken over reaches neither the network, nor its parent, nor files that are not its work."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from lora_registry.processes.children import Children
from lora_registry.processes.confinement import Confinement, missing
from tests.registry.processes.test_children import Sink

WORK = "tests.registry.processes.work"
WAYS = ("connect", "environment", "signal", "read", "write", "read allowed", "write there", "write allowed", "import")


def escape(tmp_path: Path, limits: Confinement, *ways: str) -> dict[str, str]:
    for name in ("secret", "readable", "writable"):
        (tmp_path / name).write_bytes(b"1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        spec: dict[str, Any] = {"port": server.getsockname()[1], "parent": os.getpid(), "ways": ways}
        spec |= {name: str(tmp_path / name) for name in ("secret", "readable", "writable")}
        children = Children(confinement=lambda _module: limits)
        try:
            found: dict[str, str] = children.run(
                name="escape", target=f"{WORK}:escape", spec=spec, sink=Sink(), timeout=60.0
            )
        finally:
            for pid in children.templates():
                os.kill(pid, 9)
        return found


@pytest.mark.skipif(bool(missing()), reason="this kernel cannot forbid all of it")
def test_a_confined_child(tmp_path: Path) -> None:
    limits = Confinement(
        files=True, read=(str(tmp_path / "readable"),), write=(str(tmp_path / "writable"),), memory=200 << 20
    )
    assert escape(tmp_path, limits, *WAYS, "memory") == {
        "connect": "PermissionError",
        "environment": "PermissionError",
        "signal": "PermissionError",
        "read": "PermissionError",
        "write": "PermissionError",
        "read allowed": "done",
        "write there": "PermissionError",
        "write allowed": "done",
        "import": "done",
        "memory": "MemoryError",
    }


@pytest.mark.skipif(bool(missing()), reason="this kernel cannot forbid all of it")
def test_every_child_is_without_network(tmp_path: Path) -> None:
    found = escape(tmp_path, Confinement(), "connect", "signal", "read", "write")
    assert found == {"connect": "PermissionError", "signal": "PermissionError", "read": "done", "write": "done"}


@pytest.mark.skipif(bool(missing()), reason="this kernel cannot forbid all of it")
def test_a_child_alone_starts_no_process_and_no_thread(tmp_path: Path) -> None:
    """Also as root, whom RLIMIT_NPROC does not bind."""
    found = escape(tmp_path, Confinement(alone=True), "fork", "thread", "program")
    assert found == {"fork": "PermissionError", "thread": "RuntimeError", "program": "PermissionError"}
