"""Memory does not grow with the blob: 200 MB through a process that may grow by less than 60."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.s3 import BUCKET, S3Server

MEASURE = """
import hashlib, json, resource, sys
from pathlib import Path
from lora_contract.digest import Digest
from lora_registry.blobs.open import open_store
from lora_registry.blobs.s3_settings import S3Settings
url, endpoint, verify, known = sys.argv[1:]
settings = S3Settings(endpoint_url=endpoint, region="us-east-1", path_style=True, verify=verify or True)
store = open_store(url, Path("unused"), settings)
PIECE, COUNT = bytes(range(256)) * 1024, 763
def pieces():
    for number in range(COUNT):
        yield number.to_bytes(4, "big") + PIECE[4:]
small, _ = store.put_unknown([b"warm"])
store.read(small)
sha256 = hashlib.sha256()
for piece in pieces():
    sha256.update(piece)
digest, size = Digest(sha256.hexdigest()), COUNT * len(PIECE)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
if known:
    store.put(pieces(), digest=digest, size=size)
else:
    assert store.put_unknown(pieces()) == (digest, size)
again = hashlib.sha256()
for piece in store.stream(digest):
    again.update(piece)
assert again.hexdigest() == digest.hex
store.delete(digest)
print(size, peak() - before)
"""


def growth(url: str, *, known: bool, endpoint: str = "", verify: str = "") -> float:
    """Peak resident memory, in MiB, above that of a process that has stored and read four bytes."""
    command = [sys.executable, "-c", MEASURE, url, endpoint, verify, "known" if known else ""]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    size, grown = done.stdout.split()
    assert int(size) > 200_000_000 * 0.99
    return float(grown)


@pytest.mark.parametrize("known", [True, False])
def test_memory_of_a_folder(tmp_path: Path, known: bool) -> None:
    assert growth(str(tmp_path), known=known) < 10


@pytest.mark.parametrize(("tls", "known"), [(False, True), (True, False)], ids=["http-put", "https-put_unknown"])
def test_memory_of_s3(ministack_server: S3Server, tls: bool, known: bool) -> None:
    endpoint = ministack_server.https if tls else ministack_server.http
    verify = str(ministack_server.ca) if tls else ""
    with ministack_server.credentials():
        assert growth(f"s3://{BUCKET}/memory", known=known, endpoint=endpoint, verify=verify) < 60
