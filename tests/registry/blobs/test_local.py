"""What only a folder must stand: killed writers, full disks, many processes."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs.local import LocalStore
from lora_registry.blobs.protocols import Stored
from tests.registry.blobs.places import blob

WRITER = """
import os, sys
from pathlib import Path
from lora_contract.digest import Digest
from lora_registry.blobs.local import LocalStore
store = LocalStore(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    data = os.urandom(3_000_000)
    store.put((data[i:i + 100_000] for i in range(0, len(data), 100_000)), digest=Digest.of(data), size=len(data))
    print(Digest.of(data).hex, flush=True)
"""

HANGING = """
import sys, time
from pathlib import Path
from lora_registry.blobs.local import LocalStore
def slow():
    yield b"x" * 1_000_000
    print("begun", flush=True)
    time.sleep(600)
LocalStore(Path(sys.argv[1])).put_unknown(slow())
"""


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_blobs_are_read_only_files(store: LocalStore) -> None:
    digest, _ = store.put_unknown([b"abc"])
    path = Path(store.local_path(digest) or "")
    assert path.read_bytes() == b"abc"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


@pytest.mark.parametrize("able", [True, False])
def test_the_kernel_copies_what_is_stored(store: LocalStore, able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    source, size = store.put_unknown([b"abc" * 100_000])
    real, copied = os.copy_file_range, []

    def copy(*arguments: Any, **named: Any) -> int:
        if not able:
            raise OSError(errno.EXDEV, "another file system")
        copied.append(real(*arguments, **named))
        return copied[-1]

    monkeypatch.setattr(os, "copy_file_range", copy)
    data = b"new" + b"abc" * 100_000 + b"end"
    given = [b"new", Stored(b"abc" * 100_000, source, 0), b"end"]
    assert store.put_unknown(given) == blob(data)
    assert store.read(Digest.of(data)) == data
    assert sum(copied) == (size if able else 0)


def test_strange_files_are_not_listed(store: LocalStore, tmp_path: Path) -> None:
    kept = store.put_unknown([b"abc"])
    base = tmp_path / "store" / "blobs" / "sha256"
    (base / "ba" / "notes.txt").write_text("x")
    (base / "zz").mkdir()
    (base / "stray").write_text("x")
    assert list(store.list()) == [kept]


def test_killed_writers_leave_whole_blobs_or_none(store: LocalStore, tmp_path: Path) -> None:
    acknowledged: set[str] = set()
    for round_ in range(4):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "store")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(0.05 + random.Random(round_).random() * 0.2)
            writer.send_signal(signal.SIGKILL)
            acknowledged |= {line.strip() for line in writer.stdout if len(line) == 65}
    listed = dict(store.list())
    assert acknowledged <= {digest.hex for digest in listed}
    assert acknowledged
    for digest, size in listed.items():
        data = store.read(digest)
        assert (Digest.of(data), len(data)) == (digest, size)


def test_what_a_killed_writer_left_is_swept_and_a_living_ones_file_is_not(store: LocalStore, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGING, str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begun\n"
        (left,) = (tmp_path / "store" / "tmp").iterdir()
        assert left.stat().st_size == 1_000_000
        age(left, 120)
        assert store.sweep(older_than=0) == 0
        writer.kill()
    assert list(store.list()) == []
    assert store.sweep(older_than=0) == 1
    assert not left.exists()
    left.write_bytes(b"just created, not yet locked")
    assert store.sweep(older_than=0) == 0


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root and CAP_SYS_ADMIN")
    try:
        store = LocalStore(mount)
        kept = store.put_unknown([b"a" * 1_000_000])
        too_large = [b"b" * 100_000] * 50
        for attempt in (
            lambda: store.put_unknown(too_large),
            lambda: store.put(too_large, digest=Digest.of(b"".join(too_large)), size=5_000_000),
        ):
            with pytest.raises(RegistryError, match="disk that holds the blobs is full") as caught:
                attempt()
            assert caught.value.code == "storage-unavailable"
            assert "Free space" in caught.value.hint
        assert list((mount / "tmp").iterdir()) == []
        assert list(store.list()) == [kept]
        store.put_unknown([b"c" * 2_000_000])
        store.check()
        (mount / "rest").write_bytes(b"d" * (os.statvfs(mount).f_bavail * os.statvfs(mount).f_bsize))
        with pytest.raises(RegistryError, match="disk that holds the blobs is full"):
            store.check()  # so the service is not ready
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_folder_that_is_gone_is_storage_unavailable(store: LocalStore, tmp_path: Path) -> None:
    store.check()
    (tmp_path / "store" / "tmp").rmdir()
    for attempt in (store.check, lambda: store.put_unknown([b"x"])):
        with pytest.raises(RegistryError) as caught:
            attempt()
        assert caught.value.code == "storage-unavailable"
        assert str(tmp_path) not in caught.value.detail


def test_a_blob_cut_short_behind_our_back_is_corrupt(store: LocalStore) -> None:
    digest, _ = store.put_unknown([b"a" * 1000])
    stream: Iterator[bytes] = store.stream(digest, chunk=100)
    assert next(stream) == b"a" * 100
    path = Path(store.local_path(digest) or "")
    path.chmod(0o644)
    os.truncate(path, 500)
    with pytest.raises(RegistryError) as caught:
        list(stream)
    assert caught.value.code == "corrupt"
