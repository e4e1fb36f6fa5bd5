"""A blob store of another process: a child reads and writes blobs through its parent, and has no credentials.

Every operation has a connection of its own, a pair of sockets whose one end the child sends over its control socket;
so any number of threads use it, and an operation that is given up disturbs no other. Frames are a length and bytes; a
frame of length 0 ends a stream, and its outcome follows as JSON.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, suppress
from typing import Any, Final

import msgspec

from lora_contract import decoding
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError, known_code
from lora_registry.blobs.hashing import kept
from lora_registry.blobs.keys import address, life_of
from lora_registry.blobs.protocols import BlobReader, Chunk, ChunkWriter, Stored
from lora_registry.blobs.streams import primed

_LENGTH: Final = struct.Struct("<I")
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_LIFE: Final = re.compile(r"[0-9a-f]{8}")
_CHUNK: Final = 1024 * 1024


class _Request(msgspec.Struct, frozen=True):
    """verb: size, read, put or put_unknown. digest, life: an address. length: None: to the end. size: of a put, or the
    longest chunk of a read."""

    verb: str
    digest: str = ""
    life: str = ""
    offset: int = 0
    length: int | None = None
    size: int = 0


class _Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    size: int | None = None
    digest: str = ""
    error: str = ""
    detail: str = ""
    hint: str = ""
    facts: dict[str, Any] = {}


class _Origin(msgspec.Struct, frozen=True, array_like=True):
    """Before the bytes of a `Stored` chunk: where they come from."""

    digest: str
    life: str
    offset: int


class RemoteStore:
    """The child's side. control: a socket that the parent serves with `serve`."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lock = threading.Lock()

    def size(self, digest: Digest) -> int | None:
        with closing(self._ask(_Request("size", digest.hex, life_of(digest)))) as connection:
            return _outcome(connection).size

    def read(self, digest: Digest, offset: int = 0, length: int | None = None) -> bytes:
        return b"".join(self.stream(digest, offset, length, _CHUNK))

    def stream(
        self, digest: Digest, offset: int = 0, length: int | None = None, chunk: int = _CHUNK
    ) -> Iterator[bytes]:
        return primed(self._chunks(_Request("read", digest.hex, life_of(digest), offset, length, chunk)))

    def put(self, chunks: Iterable[bytes], *, digest: Digest, size: int) -> None:
        self._send(_Request("put", digest.hex, life_of(digest), size=size), chunks)

    def put_unknown(self, chunks: Iterable[Chunk], *, life: str = "") -> tuple[Digest, int]:
        done = self._send(_Request("put_unknown", life=life), chunks)
        assert done.size is not None
        return address(Digest(done.digest), life), done.size

    def _chunks(self, request: _Request) -> Iterator[bytes]:
        with closing(self._ask(request)) as connection:
            _outcome(connection)  # errors that are known before the first byte
            yield b""
            while data := _frame(connection):
                yield data
            _outcome(connection)

    def _send(self, request: _Request, chunks: Iterable[Chunk]) -> _Outcome:
        with closing(self._ask(request)) as connection:
            with suppress(BrokenPipeError):  # the parent has given up, and says why
                for chunk in chunks:
                    view = memoryview(chunk.data if isinstance(chunk, Stored) else chunk)
                    for start in range(0, len(view), _CHUNK):
                        origin = b""
                        if isinstance(chunk, Stored):
                            origin = _encode(_Origin(chunk.digest.hex, life_of(chunk.digest), chunk.offset + start))
                        _write(connection, origin)
                        _write(connection, view[start : start + _CHUNK])
                _write(connection, b"")
                _write(connection, b"")
            return _outcome(connection)

    def _ask(self, request: _Request) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            socket.send_fds(self._control, [b"+"], [theirs.fileno()])
        _write(ours, _encode(request))
        return ours


def serve(control: socket.socket, blobs: BlobReader, writer: ChunkWriter | None, readable: Collection[str]) -> None:
    """The parent's side: answer until the child has closed its end. Each operation runs in a thread.

    Args:
        writer: where the child may put blobs; None: nowhere.
        readable: hex digits of the blobs that the child may read, beside those that it stored itself.
    """
    allowed = set(readable)
    with control:
        while True:
            try:
                _, ends, _, _ = socket.recv_fds(control, 1, 1)
            except OSError:
                return
            if not ends:
                return
            connection = socket.socket(fileno=ends[0])
            threading.Thread(
                target=_answer, args=(connection, blobs, writer, allowed), name="child-blobs", daemon=True
            ).start()


def digests_in(text: str) -> frozenset[str]:
    """The hex digits of all digests that a request names: what its child may read."""
    return frozenset(_DIGEST.findall(text))


def _answer(connection: socket.socket, blobs: BlobReader, writer: ChunkWriter | None, allowed: set[str]) -> None:
    with connection, suppress(OSError, EOFError):
        try:
            done = _run(connection, blobs, writer, allowed)
        except RegistryError as error:
            done = _Outcome(error=error.code, detail=error.detail, hint=error.hint, facts=error.facts)
        _write(connection, _encode(done))


def _run(connection: socket.socket, blobs: BlobReader, writer: ChunkWriter | None, allowed: set[str]) -> _Outcome:
    try:
        request = decoding.decode(_frame(connection), _Request)
    except msgspec.DecodeError as error:
        raise RegistryError("invalid-request", "The child sent an unreadable request.") from error
    if request.verb in ("size", "read") and request.digest not in allowed:
        raise RegistryError("forbidden", f"The child may not read the blob {request.digest[:12]}.")
    where = _address(request.digest or "0" * 64, request.life)
    match request.verb:
        case "size":
            return _Outcome(blobs.size(where))
        case "read":
            size = min(max(1, request.size), _CHUNK)
            stream = blobs.stream(where, request.offset, request.length, size)
            _write(connection, _encode(_Outcome()))
            for data in stream:
                if data:
                    _write(connection, data)
            _write(connection, b"")
            return _Outcome()
        case "put" | "put_unknown" if writer is not None:
            chunks = _received(connection, allowed)
            if request.verb == "put":
                writer.put(_plain(chunks), digest=where, size=request.size)
                digest, size = where, request.size
            else:
                digest, size = writer.put_unknown(chunks, life=request.life)
            allowed.add(digest.hex)
            return _Outcome(size, digest.hex)
    raise RegistryError("forbidden", "The child may not store blobs.")


def _received(connection: socket.socket, allowed: set[str]) -> Iterator[Chunk]:
    while True:
        origin, data = _frame(connection), _frame(connection)
        if not data:
            return
        if not origin:
            yield data
            continue
        found = decoding.decode(origin, _Origin)
        if found.digest not in allowed:
            raise RegistryError("forbidden", f"The child may not read the blob {found.digest[:12]}.")
        yield Stored(data, _address(found.digest, found.life), found.offset)


def _address(digest: str, life: str) -> Digest:
    if life and not _LIFE.fullmatch(life):
        raise RegistryError("invalid-request", "The child sent an address that is none.")
    return address(Digest.parse(f"sha256:{digest}"), life)


def _plain(chunks: Iterator[Chunk]) -> Iterator[bytes]:
    for chunk in kept(chunks):
        yield bytes(chunk.data) if isinstance(chunk, Stored) else chunk


def _outcome(connection: socket.socket) -> _Outcome:
    try:
        done = decoding.decode(_frame(connection), _Outcome)
    except (EOFError, OSError) as error:
        raise RegistryError("storage-unavailable", "The parent process closed the connection.") from error
    if done.error:
        raise RegistryError(known_code(done.error) or "internal", done.detail, hint=done.hint or None, **done.facts)
    return done


_encode: Final[Callable[[Any], bytes]] = msgspec.json.encode


def _write(connection: socket.socket, data: bytes | memoryview) -> None:
    connection.sendall(_LENGTH.pack(len(data)))
    if len(data):
        connection.sendall(data)


def _frame(connection: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > _CHUNK:
        raise EOFError
    return _exactly(connection, length)


def _exactly(connection: socket.socket, length: int) -> bytes:
    data = connection.recv(length, socket.MSG_WAITALL) if length else b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data
