"""What every store must do, over a folder and over real S3 servers, by http and by https."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs.protocols import Chunk, Stored
from tests.registry.blobs.places import Place, blob

DATA = bytes(range(256)) * 100
OTHER = Digest.of(b"something else")


def code_of(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(RegistryError) as caught:
        call(*arguments, **named)
    return caught.value.code


def pieces(data: bytes, size: int = 200_000) -> Iterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]


def session() -> str:
    return uuid.uuid4().hex


def test_what_goes_in_comes_out(place: Place) -> None:
    digest, size = blob(DATA)
    assert place.store.size(digest) is None
    place.store.put([DATA[:7], b"", DATA[7:]], digest=digest, size=size)
    assert place.store.size(digest) == size
    assert place.store.read(digest) == DATA
    assert list(place.store.list()) == [(digest, size)]


def test_blobs_of_no_bytes(place: Place) -> None:
    digest = Digest.of(b"")
    place.store.put([], digest=digest, size=0)
    assert place.store.put_unknown(iter([b""])) == (digest, 0)
    assert place.store.size(digest) == 0
    assert place.store.read(digest) == b""
    assert place.store.read(digest, 0, 0) == b""
    assert code_of(place.store.read, digest, 0, 1) == "corrupt"
    assert code_of(place.store.read, digest, 1) == "corrupt"


def test_blobs_of_several_parts(place: Place) -> None:
    data = random.Random(1).randbytes(place.large)
    digest, size = blob(data)
    place.store.put(pieces(data), digest=digest, size=size)
    assert b"".join(place.store.stream(digest)) == data
    assert place.store.read(digest, size - 10, 10) == data[-10:]


@pytest.mark.parametrize("length", [0, 1, 8 * 2**20, 8 * 2**20 + 1, 20_000_000])
def test_a_stream_of_unknown_digest(place: Place, length: int) -> None:
    data = random.Random(2).randbytes(length)
    assert place.store.put_unknown(pieces(data)) == blob(data)
    assert place.store.read(Digest.of(data)) == data
    assert list(place.store.list()) == [blob(data)]


@pytest.mark.parametrize(
    "cuts",
    [
        [(0, 20_000_000)],
        [(None, 1000), (0, 11_000_000), (None, 300_000), (12_000_000, 8_000_000)],
        [(None, 9_000_000), (500, 6_000_000), (5, 6_000_000), (None, 10), (19_999_999, 1)],
        [(0, 5 * 2**20), (5 * 2**20, 5 * 2**20 - 1), (3, 20), (None, 7)],
        [(0, 10), (10, 5)],
    ],
    ids=["whole", "runs", "short runs", "edges", "small"],
)
def test_a_stream_of_which_parts_are_stored_already(place: Place, cuts: list[tuple[int | None, int]]) -> None:
    generator = random.Random(11)
    data = generator.randbytes(place.large)
    source, _ = place.store.put_unknown(pieces(data))
    expected = b""

    def chunks() -> Iterator[Chunk]:
        nonlocal expected
        for offset, length in cuts:
            wanted = generator.randbytes(length) if offset is None else data[offset : offset + length]
            expected += wanted
            buffer = bytearray(300_000)
            for begin in range(0, length, len(buffer)):
                piece = memoryview(buffer)[: min(len(buffer), length - begin)]
                piece[:] = wanted[begin : begin + len(piece)]
                yield bytes(piece) if offset is None else Stored(piece, source, offset + begin)

    digest, size = place.store.put_unknown(chunks())
    assert (digest, size) == blob(expected)
    assert place.store.read(digest) == expected


def test_bytes_that_are_said_to_be_stored_and_are_not(place: Place) -> None:
    data = random.Random(12).randbytes(9_000_000)
    stored = place.store.put_unknown(
        Stored(data[begin : begin + 300_000], OTHER, begin) for begin in range(0, len(data), 300_000)
    )
    assert stored == blob(data)
    assert place.store.read(stored[0]) == data


def test_putting_twice_is_no_error(place: Place) -> None:
    digest, size = blob(DATA)
    for _ in range(2):
        place.store.put([DATA], digest=digest, size=size)
        assert place.store.put_unknown([DATA]) == (digest, size)
    large = b"x" * place.large
    for _ in range(2):
        place.store.put([large], digest=Digest.of(large), size=len(large))
    assert sorted(place.store.list()) == sorted([(digest, size), blob(large)])


@pytest.mark.parametrize("long", [False, True])
def test_what_differs_from_its_announcement_is_not_stored(place: Place, long: bool) -> None:
    data = b"y" * place.large if long else DATA
    digest, size = blob(data)
    store = place.store
    assert code_of(store.put, pieces(data), digest=OTHER, size=size) == "digest-mismatch"
    assert code_of(store.put, pieces(data), digest=digest, size=size - 1) == "size-mismatch"
    assert code_of(store.put, pieces(data), digest=digest, size=size + 1) == "size-mismatch"
    assert code_of(store.put, pieces(data), digest=digest, size=0) == "size-mismatch"
    assert list(store.list()) == []


def test_wrong_bytes_are_refused_though_the_blob_is_there(place: Place) -> None:
    digest, size = blob(DATA)
    place.store.put([DATA], digest=digest, size=size)
    assert code_of(place.store.put, [DATA[::-1]], digest=digest, size=size) == "digest-mismatch"
    assert place.store.read(digest) == DATA


@pytest.mark.parametrize("sent", [1000, 18_000_000])
def test_an_error_of_the_source_leaves_nothing(place: Place, sent: int) -> None:
    def failing() -> Iterator[bytes]:
        yield from pieces(b"z" * sent)
        raise OSError(5, "the source broke")

    with pytest.raises(OSError, match="the source broke"):
        place.store.put(failing(), digest=Digest.of(b"z" * 20_000_000), size=20_000_000)
    with pytest.raises(OSError, match="the source broke"):
        place.store.put_unknown(failing())
    assert list(place.store.list()) == []


def test_ranges(place: Place) -> None:
    digest, size = place.store.put_unknown([DATA])
    read = place.store.read
    assert read(digest, 0, 1) == DATA[:1]
    assert read(digest, 100, 1000) == DATA[100:1100]
    assert read(digest, 100) == DATA[100:]
    assert read(digest, size - 1, 1) == DATA[-1:]
    assert read(digest, 0, size) == DATA
    assert read(digest, 5, 0) == b""
    assert read(digest, size, 0) == b""
    assert read(digest, size) == b""


def test_reading_past_the_end_is_an_error(place: Place) -> None:
    digest, size = place.store.put_unknown([DATA])
    for offset, length in [(0, size + 1), (size - 1, 2), (size, 1), (size + 1, None), (size + 1, 0), (size + 1, 1)]:
        assert code_of(place.store.read, digest, offset, length) == "corrupt", (offset, length)
        assert code_of(place.store.stream, digest, offset, length) == "corrupt", (offset, length)
    for offset, length in [(-1, None), (0, -1)]:
        with pytest.raises(ValueError, match="negative"):
            place.store.read(digest, offset, length)


def test_what_is_not_there(place: Place) -> None:
    for offset, length in [(0, None), (0, 10), (5, None), (0, 0)]:
        assert code_of(place.store.read, OTHER, offset, length) == "not-found"
        assert code_of(place.store.stream, OTHER, offset, length) == "not-found"
    assert place.store.size(OTHER) is None
    assert place.store.local_path(OTHER) is None


def test_streams_come_in_chunks_and_may_be_dropped(place: Place) -> None:
    digest, size = place.store.put_unknown([DATA])
    lengths = [len(piece) for piece in place.store.stream(digest, chunk=10_000)]
    assert lengths == [10_000, 10_000, size - 20_000]
    assert b"".join(place.store.stream(digest, 3, 9_000, chunk=1000)) == DATA[3:9003]
    begun = place.store.stream(digest, chunk=10)
    assert next(begun) == DATA[:10]
    del begun
    # Warnings are errors here: an iterator that was never begun must close its file or connection, too.
    place.store.stream(digest)


def test_list_is_whole_and_in_order(place: Place) -> None:
    stored = [blob(f"blob {number}".encode()) for number in range(place.many)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: place.store.put_unknown([f"blob {number}".encode()]), range(place.many)))
    assert list(place.store.list()) == sorted(stored)


def test_delete(place: Place) -> None:
    digest, size = place.store.put_unknown([DATA])
    kept = place.store.put_unknown([b"kept"])
    place.store.delete(digest)
    place.store.delete(digest)
    assert place.store.size(digest) is None
    assert list(place.store.list()) == [kept]
    place.store.put([DATA], digest=digest, size=size)
    assert place.store.read(digest) == DATA


@pytest.mark.parametrize(("writers", "length"), [(16, 1000), (6, 9_000_000)])
def test_many_writers_of_one_blob(place: Place, writers: int, length: int) -> None:
    data = random.Random(length).randbytes(length)
    digest, size = blob(data)

    def put(number: int) -> None:
        if number % 2:
            place.store.put(pieces(data), digest=digest, size=size)
        else:
            assert place.store.put_unknown(pieces(data)) == (digest, size)

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(put, range(writers)))
    assert place.store.read(digest) == data
    assert list(place.store.list()) == [(digest, size)]


@pytest.mark.parametrize("data", [b"", DATA])
def test_adopting_an_upload(place: Place, data: bytes) -> None:
    digest, size = blob(data)
    upload = session()
    place.leave_upload(upload, digest.hex, data)
    for _ in range(3):
        place.store.adopt(upload, digest=digest, size=size)
        assert place.store.read(digest) == data
    place.store.discard_upload(upload)
    place.store.discard_upload(upload)
    assert place.store.read(digest) == data
    assert code_of(place.store.adopt, upload, digest=digest, size=size) == "not-found"


def test_wrong_uploads_are_not_adopted(place: Place) -> None:
    digest, size = blob(DATA)
    for data, code in [(DATA[::-1], "digest-mismatch"), (DATA[1:], "size-mismatch"), (DATA + b"!", "size-mismatch")]:
        upload = session()
        place.leave_upload(upload, digest.hex, data)
        assert code_of(place.store.adopt, upload, digest=digest, size=size) == code
        assert code_of(place.store.adopt, upload, digest=digest, size=size) == "not-found"
        place.store.discard_upload(upload)
    assert list(place.store.list()) == []


def test_nobody_adopts_the_blobs_of_others(place: Place) -> None:
    digest, size = place.store.put_unknown([DATA])
    assert code_of(place.store.adopt, session(), digest=digest, size=size) == "not-found"


def test_uploads_given_up_disappear(place: Place) -> None:
    upload, other = session(), str(uuid.uuid4())
    for name in (OTHER.hex, Digest.of(DATA).hex):
        place.leave_upload(upload, name, b"part of it")
    place.leave_upload(other, OTHER.hex, b"something else")
    place.store.discard_upload(upload)
    assert all(other in name for name in place.leftovers())
    place.store.adopt(other, digest=OTHER, size=len(b"something else"))
    place.store.discard_upload(other)


@pytest.mark.parametrize(
    "upload", ["", "..", "../blobs", "abc/../../x", "abcdefgh/", "a" * 65, "0123456z", "12345678\n"]
)
def test_sessions_cannot_leave_their_folder(place: Place, upload: str) -> None:
    assert code_of(place.store.adopt, upload, digest=OTHER, size=1) == "invalid-request"
    assert code_of(place.store.discard_upload, upload) == "invalid-request"


def test_sweeping_takes_old_uploads_alone(place: Place) -> None:
    digest, _ = place.store.put_unknown([DATA])
    place.leave_upload(session(), OTHER.hex, b"forgotten")
    assert place.store.sweep(older_than=3600) == 0
    assert len(place.leftovers()) >= 1
    assert place.store.sweep(older_than=-5) == 1
    assert place.leftovers() == []
    assert place.store.read(digest) == DATA


def test_the_store_says_that_it_is_there(place: Place) -> None:
    place.store.check()


def test_presigned_get(place: Place) -> None:
    digest, _ = place.store.put_unknown([DATA])
    request = place.store.presign_get(digest, filename='ädapter "1".safetensors', expires_in=60)
    if request is None:
        assert place.store.local_path(digest) is not None
        return
    with httpx.Client(verify=place.verify) as http:
        whole = http.request(request.method, request.url, headers=request.headers)
        assert (whole.status_code, whole.content) == (200, DATA)
        assert whole.headers["content-type"] == "application/octet-stream"
        assert whole.headers["content-disposition"] == "attachment; filename*=UTF-8''%C3%A4dapter%20%221%22.safetensors"
        part = http.request(request.method, request.url, headers={**request.headers, "Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, DATA[10:20])
        plain = place.store.presign_get(digest, filename=None, expires_in=60)
        assert plain is not None
        assert http.get(plain.url).content == DATA
        # Signed for one blob and one method.
        other, _ = place.store.put_unknown([b"a secret of others"])
        assert http.get(request.url.replace(digest.hex, other.hex)).status_code == 403
        signature = request.url.rpartition("=")[2]
        assert http.get(request.url.replace(signature, signature[::-1])).status_code == 403
        assert http.put(request.url, content=b"overwritten").status_code == 403
        assert http.delete(request.url).status_code == 403
    assert place.store.read(digest) == DATA


@pytest.mark.parametrize("data", [b"", DATA, b"m" * 12_000_000], ids=["empty", "short", "long"])
def test_presigned_put(place: Place, data: bytes) -> None:
    digest, size = blob(data)
    upload = session()
    request = place.store.presign_put(upload, digest, size=size, expires_in=60)
    if request is None:
        return
    with httpx.Client(verify=place.verify, timeout=60) as http:
        for _ in range(2):
            sent = http.request(request.method, request.url, headers=request.headers, content=data)
            assert sent.status_code == 200, sent.text
        streamed = http.request(request.method, request.url, headers=request.headers, content=pieces(data))
        assert streamed.status_code == 200, streamed.text
    place.store.adopt(upload, digest=digest, size=size)
    assert place.store.read(digest) == data
    place.store.discard_upload(upload)


def test_a_presigned_put_takes_nothing_else(place: Place) -> None:
    digest, size = blob(DATA)
    upload = session()
    request = place.store.presign_put(upload, digest, size=size, expires_in=60)
    if request is None:
        return
    wrong = DATA[::-1]
    sums = {"x-amz-checksum-sha256": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}
    with httpx.Client(verify=place.verify) as http:
        assert http.put(request.url, headers=request.headers, content=wrong).status_code == 400
        assert http.put(request.url, headers=request.headers | sums, content=wrong).status_code == 403
        longer = request.headers | {"content-length": str(size + 1)}
        assert http.put(request.url, headers=longer, content=DATA + b"!").status_code == 403
        assert http.put(request.url, content=DATA).status_code == 403
        elsewhere = request.url.replace(upload, session())
        assert http.put(elsewhere, headers=request.headers, content=DATA).status_code == 403
        as_blob = request.url.replace(f"uploads/{upload}", f"blobs/sha256/{digest.hex[:2]}")
        assert http.put(as_blob, headers=request.headers, content=DATA).status_code == 403
    assert code_of(place.store.adopt, upload, digest=digest, size=size) == "not-found"
    assert list(place.store.list()) == []


def test_presigned_urls_live_a_second_to_a_week(place: Place) -> None:
    if place.store.presign_get(OTHER, filename=None, expires_in=1) is None:
        return
    for seconds in (0, -1, 7 * 24 * 3600 + 1):
        with pytest.raises(ValueError, match="presigned"):
            place.store.presign_get(OTHER, filename=None, expires_in=seconds)
    assert place.store.presign_put(session(), OTHER, size=5 * 2**30 + 1, expires_in=60) is None


@pytest.mark.parametrize("length", [3_000_000, 20_000_000])
def test_a_writer_may_reuse_its_buffer(place: Place, length: int) -> None:
    def reused() -> Iterator[Any]:
        buffer = bytearray(1_000_000)
        for number in range(length // len(buffer)):
            buffer[:] = bytes([number]) * len(buffer)
            yield memoryview(buffer) if number % 2 else buffer

    data = b"".join(bytes([number]) * 1_000_000 for number in range(length // 1_000_000))
    place.store.put(reused(), digest=Digest.of(data), size=length)
    assert place.store.read(Digest.of(data)) == data
    place.store.delete(Digest.of(data))
    assert place.store.put_unknown(reused()) == blob(data)
    assert place.store.read(Digest.of(data)) == data


def test_random_blobs(place: Place) -> None:
    generator = random.Random(os.urandom(8))
    for _ in range(5):
        data = generator.randbytes(generator.randrange(1, 300_000))
        digest, size = place.store.put_unknown(pieces(data, generator.randrange(1000, 100_000)))
        begin = generator.randrange(size)
        length = generator.randrange(size - begin + 1)
        assert place.store.read(digest, begin, length) == data[begin : begin + length]
