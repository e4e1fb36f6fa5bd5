"""Upload the blobs that the registry needs, in parallel, directly to the store if it provides URLs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Final

from lora_contract.errors import RegistryError
from lora_contract.wire.uploads import UploadSession, UploadTarget
from lora_reg.client import Client
from lora_reg.progress import Progress
from lora_reg.transfer.scan import LocalFile

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
    pool = ThreadPoolExecutor(PARALLEL)
    try:
        tasks = [
            pool.submit(_send, client, session.id, target, files[target.digest], progress, stop) for target in needed
        ]
        done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
        failed = next((task.exception() for task in done if task.exception()), None)
        if failed is not None:
            raise failed
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        progress.end()
    return sum(target.size for target in needed)


def _send(
    client: Client, upload_id: str, target: UploadTarget, file: LocalFile, progress: Progress, stop: threading.Event
) -> None:
    def body() -> Iterator[bytes]:
        sent = 0
        try:
            for piece in file.chunks():
                if stop.is_set():
                    raise Stopped
                yield piece
                sent += len(piece)
                progress.advance(len(piece))
        except GeneratorExit:
            # The request broke and will be sent again from the first byte.
            progress.advance(-sent)
            raise

    if target.url is None:
        client.put_blob(upload_id, target.digest, body, target.size)
        return
    try:
        _put_to_store(client, target, body)
    except RegistryError as error:
        if error.facts.get("status") not in (401, 403):
            raise
        # The signature expired during earlier uploads: the session has a fresh one.
        _put_to_store(client, _fresh(client, upload_id, target), body)
    client.complete_blob(upload_id, target.digest)


def _put_to_store(client: Client, target: UploadTarget, body: object) -> None:
    assert target.url is not None
    headers = {"Content-Length": str(target.size), **target.headers}
    client.transport.request(target.method or "PUT", target.url, headers=headers, content=body)  # type: ignore[arg-type]


def _fresh(client: Client, upload_id: str, target: UploadTarget) -> UploadTarget:
    for candidate in client.upload(upload_id).blobs:
        if candidate.digest == target.digest and candidate.url is not None:
            return candidate
    raise RegistryError(
        "storage-unavailable", f"The store refused {target.digest[:19]}, and the session has no fresh URL for it."
    )
