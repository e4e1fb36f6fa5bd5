"""Keys, hashing, and the setting that chooses a store."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs import keys
from lora_registry.blobs.hashing import Tally, checked
from lora_registry.blobs.local import LocalStore
from lora_registry.blobs.multipart import part_size_for
from lora_registry.blobs.open import open_store
from lora_registry.blobs.parts import MIN_PART, Cutter, Range
from lora_registry.blobs.protocols import Chunk, Stored
from lora_registry.blobs.s3 import S3Store
from lora_registry.blobs.s3_settings import MIB, S3Settings

ABC = Digest("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


def test_keys() -> None:
    assert keys.blob_key(ABC) == f"blobs/sha256/ba/{ABC.hex}"
    assert keys.parse_blob_key(keys.blob_key(ABC)) == ABC
    upload = "0f8fad5b-d9cb-469f-a165-70867728950e"
    assert keys.upload_key(upload, ABC) == f"uploads/{upload}/{ABC.hex}"


@pytest.mark.parametrize(
    "key", ["", f"blobs/sha256/bb/{ABC.hex}", f"blobs/sha256/ba/{ABC.hex}x", f"ba/{ABC.hex}", f"uploads/ba/{ABC.hex}"]
)
def test_what_is_no_blob_key(key: str) -> None:
    assert keys.parse_blob_key(key) is None


def test_tally_and_checked() -> None:
    tally = Tally()
    assert list(tally.over([b"a", b"", b"bc"])) == [b"a", b"", b"bc"]
    assert (tally.digest, tally.size) == (ABC, 3)
    assert b"".join(checked([b"ab", b"c"], digest=ABC, size=3)) == b"abc"


def test_too_many_bytes_are_not_passed_on() -> None:
    stream = checked([b"abc", b"d", b"e"], digest=ABC, size=3)
    assert next(stream) == b"abc"
    with pytest.raises(RegistryError, match="More than the announced 3 bytes") as caught:
        next(stream)
    assert caught.value.code == "size-mismatch"


def test_parts_stay_within_ten_thousand() -> None:
    assert part_size_for(100 * MIB, 8 * MIB) == 8 * MIB
    for size in (80_000 * MIB, 80_000 * MIB + 1, 5 * 1024 * 1024 * MIB):
        assert -(-size // part_size_for(size, 8 * MIB)) <= 10_000


@pytest.mark.parametrize("copies", [True, False])
def test_random_streams_are_cut_into_parts_that_s3_takes(copies: bool) -> None:
    generator = random.Random(3)
    blobs = {digest: generator.randbytes(400) for digest in (ABC, Digest("0" * 64))}
    ranges = 0
    for _ in range(300):
        size = generator.randrange(1, 40)
        cutter, given, made = Cutter(size, size * generator.randrange(1, 4)), bytearray(), []
        chunks: list[Chunk] = []
        while len(given) < 300:
            length = generator.randrange(30)
            if generator.random() < 0.7:
                digest, offset = generator.choice([*blobs]), generator.randrange(300)
                for begin in range(offset, min(offset + 4 * length, 400), 13):
                    piece = blobs[digest][begin : min(begin + 13, offset + 4 * length, 400)]
                    chunks.append(Stored(piece, digest, begin))
                    given += piece
            else:
                chunks.append(generator.randbytes(length))
                given += chunks[-1]
        for part in cutter.parts(chunks):
            if isinstance(part, Range):
                ranges += 1
                data = blobs[part.digest][part.offset : part.end]
                assert part.data in (None, data)
                if cutter.copies is None:
                    assert part.data is not None
                    cutter.copies = copies
                made.append(data)
            else:
                made.append(part)
        assert b"".join(made) == given
        assert all(len(part) >= min(size, MIN_PART) for part in made[:-1])
        assert made[-1]
    assert ranges > 150


def test_open_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    folder = open_store(None, tmp_path / "data")
    digest, _ = folder.put_unknown([b"abc"])
    assert folder.local_path(digest) == str(tmp_path / "data" / "blobs" / "sha256" / "ba" / ABC.hex)
    for url in (f"file://{tmp_path}/data", str(tmp_path / "data")):
        assert isinstance(open_store(url, tmp_path / "unused"), LocalStore)
        assert open_store(url, tmp_path / "unused").read(ABC) == b"abc"
    settings = S3Settings(endpoint_url="http://127.0.0.1:9", region="us-east-1", path_style=True)
    for url, path in [("s3://b", "b/"), ("s3://b/", "b/"), ("s3://b/a/c/", "b/a/c/"), ("s3://my.b/a", "my.b/a/")]:
        bucket = open_store(url, tmp_path, settings)
        assert isinstance(bucket, S3Store)
        request = bucket.presign_get(ABC, filename=None, expires_in=60)
        assert request is not None
        assert request.url.startswith(f"http://127.0.0.1:9/{path}blobs/sha256/ba/{ABC.hex}?")
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    "url", ["gs://bucket", "s3://", "s3://key:secret@bucket/x", "s3://b?x=1", "file://host/x", "http://x"]
)
def test_urls_that_are_no_store(url: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryError) as caught:
        open_store(url, tmp_path)
    assert caught.value.code == "usage"
    assert "secret" not in caught.value.detail
