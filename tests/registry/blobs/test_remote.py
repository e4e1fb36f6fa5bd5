"""Blobs through another process: the same bytes and errors as of the store itself, and no others."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs.local import LocalStore
from lora_registry.blobs.protocols import Stored
from lora_registry.blobs.remote import RemoteStore, digests_in, serve
from tests.registry.site import until

DATA = os.urandom(5_000_003)
KNOWN = Digest.of(DATA)


@contextmanager
def remote(root: Path, *, stores: bool = True) -> Iterator[RemoteStore]:
    """A store with one blob, which may be read, and another, which may not."""
    local = LocalStore(root)
    local.put([DATA], digest=KNOWN, size=len(DATA))
    local.put([b"other"], digest=Digest.of(b"other"), size=5)
    ours, theirs = socket.socketpair()
    allowed = digests_in(f'{{"files": ["{KNOWN}"]}}')
    server = threading.Thread(target=serve, args=(theirs, local, local if stores else None, allowed))
    server.start()
    with ours:
        yield RemoteStore(ours)
    server.join(10)
    assert not server.is_alive()
    until(lambda: not any((root / "tmp").iterdir()))


def test_reading(tmp_path: Path) -> None:
    with remote(tmp_path) as store:
        assert store.size(KNOWN) == len(DATA)
        assert store.read(KNOWN) == DATA
        assert store.read(KNOWN, 17, 2_000_000) == DATA[17:2_000_017]
        assert store.read(KNOWN, len(DATA), 0) == b""
        with ThreadPoolExecutor(8) as pool:
            parts = pool.map(lambda number: store.read(KNOWN, number * 1000, 1000), range(100))
            assert b"".join(parts) == DATA[:100_000]
        given_up = store.stream(KNOWN)
        next(given_up)
        del given_up
        with pytest.raises(RegistryError) as caught:
            store.read(KNOWN, 1, len(DATA))
        assert caught.value.code == "corrupt"


def test_storing(tmp_path: Path) -> None:
    chunks = [b"head", Stored(DATA[100:3_000_100], KNOWN, 100), b"", b"tail"]
    whole = b"head" + DATA[100:3_000_100] + b"tail"
    with remote(tmp_path) as store:
        assert store.put_unknown(chunks) == (Digest.of(whole), len(whole))
        assert store.read(Digest.of(whole)) == whole
        store.put([b"a", b"b"], digest=Digest.of(b"ab"), size=2)
        assert store.read(Digest.of(b"ab")) == b"ab"
        with pytest.raises(RegistryError) as caught:
            store.put([DATA], digest=Digest.of(b"ab"), size=2)
        assert caught.value.code == "size-mismatch"

        def broken() -> Iterator[bytes]:
            yield DATA
            raise LookupError("the computation failed")

        with pytest.raises(LookupError):
            store.put_unknown(broken())


def test_what_a_child_may_not_do(tmp_path: Path) -> None:
    with remote(tmp_path, stores=False) as store:
        for ask in (
            lambda: store.read(Digest.of(b"other")),
            lambda: store.size(Digest.of(b"other")),
            lambda: store.put([b"ab"], digest=Digest.of(b"ab"), size=2),
            lambda: store.put_unknown([b"ab"]),
        ):
            with pytest.raises(RegistryError) as caught:
                ask()
            assert caught.value.code == "forbidden"
    with remote(tmp_path) as store, pytest.raises(RegistryError) as caught:
        store.put_unknown([Stored(b"other", Digest.of(b"other"), 0)])
    assert caught.value.code == "forbidden"
