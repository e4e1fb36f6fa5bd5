"""Upload the blobs that the registry needs, in parallel, directly to the store if it provides URLs.

A long blob goes in parts. What the registry has of it is not sent again, so a push that was cut off, or whose process
died, goes on where it was.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.wire.uploads import PartSpec, PartTarget, UploadSession, UploadTarget
from lora_reg.client import Client
from lora_reg.progress import Progress
from lora_reg.transfer.scan import LocalFile
from lora_reg.transport import Body

PARALLEL: Final = 4


class Stopped(Exception):
    """Another upload failed, or the user interrupted: this one stops."""


def send_blobs(client: Client, session: UploadSession, files: Mapping[str, LocalFile], progress: Progress) -> int:
    """Upload the blobs that the session needs; `files` by digest. Returns the bytes uploaded.

    Raises the RegistryError of the first blob that failed; the others stop.
    """
    needed = [target for target in session.blobs if target.state != "present"]
    stop = threading.Event()
    progress.begin("Uploading", sum(target.size for target in needed))
    with ThreadPoolExecutor(PARALLEL) as blobs, ThreadPoolExecutor(PARALLEL) as parts:
        upload = _Upload(client, session.id, progress, stop, parts)
        try:
            sent = _results(blobs.submit(upload.send, target, files[target.digest]) for target in needed)
        finally:
            stop.set()
            for pool in (blobs, parts):
                pool.shutdown(cancel_futures=True)
            progress.end()
    return sum(sent)


def _results(started: Iterable[Future[int]]) -> list[int]:
    """Return all results, or raise the first error as soon as it occurs."""
    tasks = list(started)
    done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
    failed = next((task.exception() for task in done if task.exception()), None)
    if failed is not None:
        raise failed
    return [task.result() for task in tasks]


@dataclass(frozen=True, slots=True)
class _Upload:
    """An upload session while its blobs are sent. parts: the pool that sends parts of long blobs."""

    client: Client
    id: str
    progress: Progress
    stop: threading.Event
    parts: ThreadPoolExecutor

    def send(self, target: UploadTarget, file: LocalFile) -> int:
        """Send a blob; return the bytes sent."""
        if target.part_size is not None:
            sent = self._send_parts(target, file)
            self.client.complete_blob(self.id, target.digest)
            return sent
        body = self._body(file, 0, target.size)
        if target.url is None:
            self.client.put_blob(self.id, target.digest, body, target.size)
            return target.size
        try:
            self._put_to_store(target, body)
        except RegistryError as error:
            if error.facts.get("status") not in (401, 403):
                raise
            # The signature expired during earlier uploads: the session has a fresh one.
            self._put_to_store(self._fresh(target), body)
        self.client.complete_blob(self.id, target.digest)
        return target.size

    def _send_parts(self, target: UploadTarget, file: LocalFile) -> int:
        stored = self.client.stored_parts(self.id, target.digest)
        step, there = stored.part_size, set(stored.numbers)
        ranges = {
            number: (offset, min(step, target.size - offset))
            for number, offset in enumerate(range(0, target.size, step), start=1)
        }
        self.progress.advance(sum(length for number, (_, length) in ranges.items() if number in there))
        missing = {number: span for number, span in ranges.items() if number not in there}
        return sum(
            _results(
                self.parts.submit(self._send_part, target.digest, file, number, *span)
                for number, span in missing.items()
            )
        )

    def _send_part(self, digest: str, file: LocalFile, number: int, offset: int, length: int) -> int:
        state = hashlib.sha256()
        for piece in file.chunks(offset, length):
            if self.stop.is_set():
                raise Stopped
            state.update(piece)
        part = PartSpec(number=number, digest=str(Digest(state.hexdigest())))
        target = self.client.part_target(self.id, digest, part)
        body = self._body(file, offset, length)
        if target.url is None:
            self.client.put_part(self.id, digest, number, body, length)
        else:
            self._put_to_store(target, body)
        return length

    def _body(self, file: LocalFile, offset: int, length: int) -> Body:
        def body() -> Iterator[bytes]:
            sent = 0
            try:
                for piece in file.chunks(offset, length):
                    if self.stop.is_set():
                        raise Stopped
                    yield piece
                    sent += len(piece)
                    self.progress.advance(len(piece))
            except GeneratorExit:
                # The request broke and will be sent again from the first byte.
                self.progress.advance(-sent)
                raise

        return body

    def _put_to_store(self, target: UploadTarget | PartTarget, body: Body) -> None:
        assert target.url is not None
        headers = {"Content-Length": str(target.size), **target.headers}
        self.client.transport.request(target.method or "PUT", target.url, headers=headers, content=body)

    def _fresh(self, target: UploadTarget) -> UploadTarget:
        for candidate in self.client.upload(self.id).blobs:
            if candidate.digest == target.digest and candidate.url is not None:
                return candidate
        raise RegistryError(
            "storage-unavailable", f"The store refused {target.digest[:19]}, and the session has no fresh URL for it."
        )
