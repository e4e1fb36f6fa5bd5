"""What only S3 must stand: stores that are down, connections that break, signatures that expire."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.compat import get_current_datetime

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs.protocols import Stored
from lora_registry.blobs.s3 import S3Store
from lora_registry.blobs.s3_client import make_client
from lora_registry.blobs.s3_settings import MIB
from lora_registry.settings import ServiceSettings
from tests.registry.blobs.places import S3Place, blob
from tests.support.faults import FaultProxy
from tests.support.front import Answer, Front
from tests.support.processes import free_ports
from tests.support.s3 import BUCKET, S3Server

DATA = random.Random(5).randbytes(20 * MIB)


@pytest.fixture(params=["ministack", "swift"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def place(server: S3Server) -> S3Place:
    return S3Place(server, prefix=f"f/{uuid.uuid4().hex}", tls=False, many=0)


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(int(server.http.rpartition(":")[2])) as proxy:
        yield proxy


def through(proxy: FaultProxy, place: S3Place, **changes: Any) -> S3Store:
    return place.server.store(prefix=place.prefix, endpoint_url=f"http://127.0.0.1:{proxy.port}", **changes)


def pieces(data: bytes) -> Iterator[bytes]:
    for begin in range(0, len(data), 256 * 1024):
        yield data[begin : begin + 256 * 1024]


def unavailable(call: Any, *arguments: Any, **named: Any) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        call(*arguments, **named)
    assert caught.value.code == "storage-unavailable"
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.facts)
    for secret in ("testing", "test:tester", "Signature=", "Credential=", "http://"):
        assert secret not in shown
    return caught.value


def test_a_store_that_is_down(ministack_server: S3Server) -> None:
    (port,) = free_ports(1)
    store = ministack_server.store(prefix="x", endpoint_url=f"http://127.0.0.1:{port}", attempts=1)
    digest, size = blob(b"abc")
    unavailable(store.check)
    unavailable(store.size, digest)
    unavailable(store.read, digest)
    unavailable(store.stream, digest)
    unavailable(store.put, [b"abc"], digest=digest, size=size)
    unavailable(store.put_unknown, pieces(DATA))
    unavailable(store.delete, digest)
    unavailable(lambda: list(store.list()))


def test_a_store_that_is_slow_to_answer(place: S3Place, proxy: FaultProxy) -> None:
    proxy.delay = 2.0
    unavailable(through(proxy, place, attempts=1, read_timeout=0.3).check)


def test_a_bucket_that_is_missing_and_keys_that_are_wrong(swift_server: S3Server) -> None:
    settings = swift_server.settings()
    missing = S3Store(bucket="nowhere", prefix="", client=swift_server.client(settings), settings=settings)
    unavailable(missing.check)
    unavailable(missing.put_unknown, [b"abc"])
    unavailable(lambda: list(missing.list()))
    stranger = replace(swift_server, secret_key="wrong-secret")
    refused = unavailable(stranger.store(prefix="x").check)
    assert refused.facts["status"] == 403
    assert "credentials" in refused.hint


def test_a_certificate_that_is_not_trusted(ministack_server: S3Server) -> None:
    unavailable(ministack_server.store(prefix="x", tls=True, verify=True, attempts=1).check)


def test_an_upload_cut_for_good_shows_nothing(place: S3Place, proxy: FaultProxy) -> None:
    store = through(proxy, place, attempts=1)
    for length in (4 * MIB, len(DATA)):
        data = DATA[:length]
        for cut_after in (1000, length // 2, length - 1000):
            proxy.reset()
            proxy.cut_up_after = cut_after
            unavailable(store.put, pieces(data), digest=Digest.of(data), size=length)
            proxy.reset()
            proxy.cut_up_after = cut_after
            unavailable(store.put_unknown, pieces(data))
    assert list(place.store.list()) == []
    # The way to give the uploads up was cut too; that is what the sweep is for.
    place.store.sweep(older_than=-5)
    assert place.leftovers() == []


def test_an_upload_cut_once_is_repeated(place: S3Place, proxy: FaultProxy) -> None:
    store = through(proxy, place, attempts=3)
    for length in (4 * MIB, len(DATA)):
        data = DATA[:length]
        proxy.reset()
        proxy.cut_up_after, proxy.cuts = length // 2, 1
        store.put(pieces(data), digest=Digest.of(data), size=length)
        assert proxy.cut_count == 1
        assert place.store.read(Digest.of(data)) == data
    assert place.leftovers() == []


def test_an_answer_that_is_lost_is_asked_for_again(place: S3Place, proxy: FaultProxy) -> None:
    # Cutting what comes back, at the first byte: the store has done its work, and nobody learns of it.
    store = through(proxy, place, attempts=3)
    answers = {"put": 0, "multipart": 0}
    for kind, data in (("put", DATA[:1000]), ("multipart", DATA)):
        for cut_after in range(0, 6000, 800):
            proxy.reset()
            proxy.cut_down_after, proxy.cuts = cut_after, 1
            store.put(pieces(data), digest=Digest.of(data), size=len(data))
            answers[kind] += proxy.cut_count
            assert place.store.size(Digest.of(data)) == len(data)
            if proxy.cut_count == 0:
                break
    assert answers["put"] >= 1
    assert answers["multipart"] >= 4
    assert place.store.read(Digest.of(DATA)) == DATA
    place.store.sweep(older_than=-5)
    assert place.leftovers() == []


@pytest.mark.parametrize("body", [b"", b"<?xml version='1.0'?><ListBucketResult><KeyC"])
def test_a_listing_cut_short_is_not_an_empty_store(body: bytes, ministack_server: S3Server) -> None:
    def answer() -> None:
        for _ in range(2):
            connection, _address = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: 512\r\n\r\n" + body
                )

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=answer)
        server.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        store = ministack_server.store(prefix="x", endpoint_url=url, attempts=2)
        unavailable(lambda: list(store.list()))
        server.join(5)
        assert not server.is_alive(), "boto asked a second time"


def test_a_download_cut_once_goes_on_where_it_was(place: S3Place, proxy: FaultProxy) -> None:
    digest, size = place.store.put_unknown(pieces(DATA))
    store = through(proxy, place, attempts=3)
    for begin, length in ((0, None), (12_345, None), (12_345, size - 54_321)):
        proxy.reset()
        proxy.cut_down_after, proxy.cuts = 5_000_000, 2
        end = size if length is None else begin + length
        assert b"".join(store.stream(digest, begin, length)) == DATA[begin:end]
        assert proxy.cut_count >= 1


def test_a_download_cut_for_good_is_an_error(place: S3Place, proxy: FaultProxy) -> None:
    digest, _ = place.store.put_unknown(pieces(DATA))
    store = through(proxy, place, attempts=1)
    proxy.cut_down_after = 5_000_000
    unavailable(store.read, digest)


def stored(data: bytes, source: Digest, offset: int = 0) -> Iterator[Stored]:
    for begin in range(0, len(data), 256 * 1024):
        yield Stored(data[begin : begin + 256 * 1024], source, offset + begin)


def test_what_the_store_holds_does_not_travel_again(place: S3Place, proxy: FaultProxy) -> None:
    source, _ = place.store.put_unknown(pieces(DATA))
    new = random.Random(6).randbytes(300_000)
    changed = DATA[: 9 * MIB] + new + DATA[9 * MIB + len(new) :]
    store = through(proxy, place, part_size=5 * MIB)
    proxy.reset()
    assert store.put_unknown(pieces(changed[: -2 * MIB])) == blob(changed[: -2 * MIB])
    plain = proxy.passed[True]
    proxy.reset()
    rest = chain(
        stored(DATA[: 9 * MIB], source),
        [new],
        stored(DATA[9 * MIB + len(new) :], source, 9 * MIB + len(new)),
    )
    assert store.put_unknown(rest) == blob(changed)
    copied = proxy.passed[True]
    assert store.read(Digest.of(changed)) == changed
    # Sent are the last 4 of the first 9 MiB, the new bytes, and what fills them up to the 5 MiB of a part.
    assert plain > 18 * MIB
    assert copied < 5.2 * MIB, f"{copied} bytes were sent"


def test_a_checkpoint_of_which_little_changed_sends_little(place: S3Place, proxy: FaultProxy) -> None:
    base = random.Random(7).randbytes(80 * MIB)
    source, _ = place.store.put_unknown(pieces(base))
    proxy.reset()
    header = random.Random(8).randbytes(5000)
    result = header + base[5000:]
    assert through(proxy, place).put_unknown(chain([header], stored(base[5000:], source, 5000))) == blob(result)
    assert proxy.passed[True] < 6 * MIB, f"{proxy.passed[True]} of {len(result)} bytes were sent"
    assert Digest.of(b"".join(place.store.stream(blob(result)[0]))) == Digest.of(result)


def test_a_store_that_copies_no_ranges_is_sent_the_bytes(ministack_server: S3Server) -> None:
    place = S3Place(ministack_server, prefix=f"f/{uuid.uuid4().hex}", tls=False, many=0)
    source, _ = place.store.put_unknown(pieces(DATA))

    def refuse(answer: Answer) -> None:
        if "x-amz-copy-source" in answer.asked and "partNumber" in answer.path:
            answer.status, answer.body, answer.headers = 501, b"", {}

    with Front(ministack_server.http, harm=refuse) as front:
        store = place.server.store(prefix=place.prefix, endpoint_url=front.url, attempts=1)
        assert store.put_unknown(chain([b"new"], stored(DATA, source))) == blob(b"new" + DATA)
        asked = [path for verb, path, headers in front.log if verb == "PUT" and "x-amz-copy-source" in headers]
    assert len([path for path in asked if "partNumber" in path]) == 1
    assert place.store.read(Digest.of(b"new" + DATA)) == b"new" + DATA
    assert place.leftovers() == []


def test_a_range_that_is_copied_whole_makes_no_blob(place: S3Place) -> None:
    source, _ = place.store.put_unknown(pieces(DATA))

    def forget(params: dict[str, Any], **_: Any) -> None:
        del params["headers"]["x-amz-copy-source-range"]

    with place.server.credentials():
        client = make_client(place.server.settings())
        client.meta.events.register("before-call.s3.UploadPartCopy", forget)
        store = S3Store(bucket=BUCKET, prefix=place.prefix, client=client, settings=place.server.settings())
        unavailable(store.put_unknown, chain([b"new"], stored(DATA, source)))
    assert [digest for digest, _ in place.store.list()] == [source]
    assert place.leftovers() == []


def test_presigned_urls_expire(place: S3Place) -> None:
    digest, size = place.store.put_unknown([b"abc"])
    upload = uuid.uuid4().hex
    get = place.store.presign_get(digest, filename=None, expires_in=1)
    put = place.store.presign_put(upload, digest, size=size, expires_in=1)
    assert get is not None
    assert put is not None
    time.sleep(2.1)
    assert httpx.get(get.url).status_code == 403
    assert httpx.put(put.url, headers=put.headers, content=b"abc").status_code == 403
    assert place.leftovers() == []


def test_presigned_urls_of_a_clock_ten_minutes_behind(place: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, size = place.store.put_unknown([b"abc"])
    behind = get_current_datetime() - timedelta(minutes=10)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_: behind)
    seconds = ServiceSettings().presign_seconds
    get = place.store.presign_get(digest, filename=None, expires_in=seconds)
    put = place.store.presign_put(uuid.uuid4().hex, digest, size=size, expires_in=seconds)
    monkeypatch.undo()
    assert get is not None
    assert put is not None
    assert httpx.get(get.url).content == b"abc"
    assert httpx.put(put.url, headers=put.headers, content=b"abc").status_code == 200


def test_large_copies_go_in_parts(place: S3Place) -> None:
    store = place.server.store(prefix=place.prefix, single_copy_limit=6 * MIB, part_size=5 * MIB)
    assert store.put_unknown(pieces(DATA)) == blob(DATA)
    assert store.read(Digest.of(DATA)) == DATA
    upload = uuid.uuid4().hex
    other = DATA[::-1]
    place.leave_upload(upload, Digest.of(other).hex, other)
    store.adopt(upload, digest=Digest.of(other), size=len(other))
    assert store.read(Digest.of(other)) == other
    store.discard_upload(upload)
    assert place.leftovers() == []


def test_an_upload_that_changes_while_it_is_checked_is_refused(place: S3Place) -> None:
    good, bad = b"g" * 1000, b"b" * 1000
    upload = uuid.uuid4().hex
    place.leave_upload(upload, Digest.of(good).hex, good)

    def swap(**_: Any) -> None:
        """Another request overwrites the upload after it was hashed and before it is copied."""
        place.leave_upload(upload, Digest.of(good).hex, bad)

    settings = place.server.settings()
    client = place.server.client(settings)
    client.meta.events.register("before-call.s3.CopyObject", swap)
    store = S3Store(bucket=BUCKET, prefix=place.prefix, client=client, settings=settings)
    with pytest.raises(RegistryError) as caught:
        store.adopt(upload, digest=Digest.of(good), size=1000)
    assert caught.value.code == "digest-mismatch"
    assert list(store.list()) == []
    store.discard_upload(upload)


def test_without_the_checksums_that_boto_adds(place: S3Place) -> None:
    store = place.server.store(prefix=place.prefix, tls=True, checksums="when_required")
    for data in (b"", b"abc", DATA):
        store.put(pieces(data), digest=Digest.of(data), size=len(data))
        assert store.read(Digest.of(data)) == data


START_AND_WAIT = """
import sys, time
from pathlib import Path
from tests.support.s3 import ministack, swift
with ministack(Path(sys.argv[1]) / "m"), swift(Path(sys.argv[1]) / "s"):
    print("up", flush=True)
    time.sleep(600)
"""


def test_servers_do_not_outlive_the_tests(tmp_path: Path) -> None:
    def left() -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            # A process may end while it is looked at.
            with contextlib.suppress(OSError):
                words = f"{os.readlink(process / 'cwd')} {(process / 'cmdline').read_text()}"
                if str(tmp_path) in words and process.name != str(owner.pid):
                    found.append(words)
        return found

    with subprocess.Popen([sys.executable, "-c", START_AND_WAIT, str(tmp_path)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        assert len(left()) >= 5
        owner.kill()
    deadline = time.monotonic() + 5
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left() == []


def test_two_prefixes_of_one_bucket_are_two_stores(place: S3Place) -> None:
    one = place.server.store(prefix=f"{place.prefix}/a")
    two = place.server.store(prefix=f"{place.prefix}/a2")
    stored = one.put_unknown([b"abc"])
    assert list(one.list()) == [stored]
    assert list(two.list()) == []
    assert two.size(stored[0]) is None
