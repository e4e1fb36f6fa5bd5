"""Long blobs, sent in parts: parallel, straight to the store if it has presigned URLs, and resumable.

Parts belong to an upload session. The store keeps them until the session ends, so a client that was cut off or
restarted asks which ones are there and sends the others. `complete` then checks the joined bytes.
"""

from __future__ import annotations

from typing import Final

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.wire.uploads import PartsRequest, PartTarget, PartTargets, StoredParts
from lora_registry.auth.caller import Caller
from lora_registry.blobs import protocols
from lora_registry.blobs.parts import part_size_for
from lora_registry.db.tables import UploadFile
from lora_registry.push.announced import require_announced
from lora_registry.push.reception import Reception
from lora_registry.runtime.faults import fault_point
from lora_registry.settings import ServiceSettings

MAX_AT_ONCE: Final = 100


def part_size(settings: ServiceSettings, size: int) -> int | None:
    """Return the size of the parts of a blob of `size` bytes; None if it is sent at once."""
    return None if size <= settings.upload_part_bytes else part_size_for(size, settings.upload_part_bytes)


def stored(caller: Caller, upload_id: str, digest: Digest) -> StoredParts:
    """Show which parts of a blob are stored, whole. Raises `not-found`, `invalid-request`."""
    file, _ = require_announced(caller, upload_id, digest)
    step = _step(caller, file)
    found = caller.ctx.blobs.parts(upload_id, digest)
    whole = [number for number, size in sorted(found.items()) if size == _length(file, step, number)]
    return StoredParts(part_size=step, numbers=whole)


def targets(caller: Caller, upload_id: str, digest: Digest, request: PartsRequest) -> PartTargets:
    """Say how to send these parts, with presigned requests if the store has them."""
    if len(request.parts) > MAX_AT_ONCE:
        raise RegistryError(
            "invalid-request", f"A request names at most {MAX_AT_ONCE} parts, not {len(request.parts)}."
        )
    file, _ = require_announced(caller, upload_id, digest)
    step = _step(caller, file)
    settings = caller.ctx.settings
    fault_point("upload.parts")
    answers = []
    for part in request.parts:
        size = _require_length(file, step, part.number)
        presigned = None
        if settings.presign:
            presigned = caller.ctx.blobs.presign_part(
                upload_id,
                digest,
                part.number,
                part=Digest.parse(part.digest),
                size=size,
                expires_in=settings.presign_seconds,
            )
        target = PartTarget(number=part.number, size=size)
        if presigned is not None:
            target = PartTarget(part.number, size, presigned.method, presigned.url, presigned.headers)
        answers.append(target)
    return PartTargets(answers)


def receive(caller: Caller, upload_id: str, digest: Digest, number: int) -> Reception:
    """Receive a part's bytes. Raises `size-mismatch`, `not-found` on the way; nothing is stored then."""

    def begin() -> protocols.Reception:
        file, _ = require_announced(caller, upload_id, digest)
        size = _require_length(file, _step(caller, file), number)
        return caller.ctx.blobs.receive_part(upload_id, digest, number, size=size)

    return Reception(begin, lambda: None)


def _step(caller: Caller, file: UploadFile) -> int:
    step = part_size(caller.ctx.settings, file.size)
    if step is None:
        raise RegistryError(
            "invalid-request",
            f"A blob of {file.size} bytes is sent at once.",
            hint="Send its bytes as the upload session says.",
        )
    return step


def _length(file: UploadFile, step: int, number: int) -> int:
    return min(step, file.size - (number - 1) * step)


def _require_length(file: UploadFile, step: int, number: int) -> int:
    count = -(-file.size // step)
    if not 1 <= number <= count:
        raise RegistryError("invalid-request", f"The blob has parts 1 to {count}; there is no part {number}.")
    return _length(file, step, number)
