"""Long uploads in parts, over every store: joined if they are the announced bytes, discarded if not."""

from __future__ import annotations

import random
from collections.abc import Iterable

import httpx
import pytest

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs.streams import feed
from tests.registry.blobs.places import Place, blob
from tests.registry.blobs.test_protocols import code_of, pieces, session

PART = 5 * 2**20
DATA = random.Random(5).randbytes(2 * PART + 12345)
PARTS = {1: DATA[:PART], 2: DATA[PART : 2 * PART], 3: DATA[2 * PART :]}


def put(place: Place, upload: str, digest: Digest, number: int, chunks: Iterable[bytes], size: int) -> None:
    feed(place.store.receive_part(upload, digest, number, size=size), chunks)


def send(place: Place, upload: str, numbers: dict[int, bytes]) -> None:
    for number, data in numbers.items():
        put(place, upload, Digest.of(DATA), number, pieces(data), len(data))


def test_parts_are_joined_in_order(place: Place) -> None:
    (digest, size), upload = blob(DATA), session()
    send(place, upload, {3: PARTS[3], 1: PARTS[1], 2: PARTS[2]})
    assert place.store.parts(upload, digest) == {number: len(data) for number, data in PARTS.items()}
    assert place.store.size(digest) is None
    for _ in range(2):  # a client that lost the answer asks again
        place.store.adopt(upload, digest=digest, size=size)
        assert b"".join(place.store.stream(digest)) == DATA
    place.store.discard_upload(upload)
    assert place.store.parts(upload, digest) == {}


def test_a_single_part_is_joined(place: Place) -> None:
    (digest, size), upload = blob(PARTS[3]), session()
    put(place, upload, digest, 1, [PARTS[3]], size)
    place.store.adopt(upload, digest=digest, size=size)
    assert place.store.read(digest) == PARTS[3]
    place.store.discard_upload(upload)


def test_parts_of_other_bytes_are_discarded(place: Place) -> None:
    (digest, size), upload = blob(DATA), session()
    send(place, upload, PARTS | {2: bytes(PART)})
    assert code_of(place.store.adopt, upload, digest=digest, size=size) == "digest-mismatch"
    assert place.store.size(digest) is None
    assert place.store.parts(upload, digest) == {}
    place.store.discard_upload(upload)


def test_a_missing_part_is_sent_later(place: Place) -> None:
    (digest, size), upload = blob(DATA), session()
    send(place, upload, {1: PARTS[1], 3: PARTS[3]})
    assert code_of(place.store.adopt, upload, digest=digest, size=size) == "size-mismatch"
    send(place, upload, {2: PARTS[2]})
    place.store.adopt(upload, digest=digest, size=size)
    assert place.store.read(digest) == DATA
    place.store.discard_upload(upload)


def test_a_part_that_breaks_off_is_not_there_and_one_sent_again_replaces_the_first(place: Place) -> None:
    digest, upload = Digest.of(DATA), session()
    for wrong in (PARTS[3][:-1], PARTS[3] + b"x"):
        with pytest.raises(RegistryError) as caught:
            put(place, upload, digest, 1, [wrong], len(PARTS[3]))
        assert caught.value.code == "size-mismatch"
    assert place.store.parts(upload, digest) == {}
    put(place, upload, digest, 1, [b"old"], 3)
    put(place, upload, digest, 1, [b"newer"], 5)
    assert place.store.parts(upload, digest) == {1: 5}
    place.store.discard_upload(upload)


@pytest.mark.parametrize("number", [0, -1, 10_001])
def test_numbers_of_parts_are_those_of_s3(place: Place, number: int) -> None:
    assert code_of(place.store.receive_part, session(), Digest.of(DATA), number, size=0) == "invalid-request"


def test_a_presigned_part_takes_nothing_but_its_bytes(place: Place) -> None:
    (digest, size), upload = blob(DATA), session()
    if place.store.presign_put(upload, digest, size=size, expires_in=60) is None:
        part = Digest.of(PARTS[1])
        assert place.store.presign_part(upload, digest, 1, part=part, size=PART, expires_in=60) is None
        return
    for number, data in PARTS.items():
        signed = place.store.presign_part(upload, digest, number, part=Digest.of(data), size=len(data), expires_in=60)
        assert signed is not None
        shorter = httpx.put(
            signed.url,
            content=data[:-1],
            headers=signed.headers | {"content-length": str(len(data) - 1)},
            verify=place.verify,
        )
        assert shorter.status_code == 403
        httpx.put(signed.url, content=data, headers=signed.headers, verify=place.verify).raise_for_status()
    place.store.adopt(upload, digest=digest, size=size)
    assert place.store.read(digest) == DATA
    place.store.discard_upload(upload)
