"""Remove old backups from a place."""

from __future__ import annotations

from lora_registry.backup import copying, place
from lora_registry.backup.copying import Tell
from lora_registry.backup.document import DOCUMENT
from lora_registry.backup.place import Place
from lora_registry.backup.take import blobs_of


def prune(target: Place, *, keep: int, tell: Tell) -> None:
    """Remove all but the newest backups, and the blobs that none of those has.

    Blobs stay if another backup is unfinished: it may be running and count on them.
    """
    known = place.finished(target)
    for backup_id in known[:-keep]:
        # Without its document it is unfinished, whatever happens next.
        target.remove(place.path(backup_id, DOCUMENT))
        for name in place.files(target, backup_id):
            target.remove(name)
    if place.unfinished(target):
        tell("old blobs stay: a backup is unfinished")
        return
    kept = copying.union(*(blobs_of(target, place.load(target, backup_id)) for backup_id in known[-keep:]))
    removed = copying.Count()
    for where, size in copying.missing(target.blobs.list(), kept):
        target.blobs.delete(where)
        removed.add(size)
    tell(f"removed: {max(len(known) - keep, 0)} backups, {removed.blobs} blobs, {removed.bytes} bytes")
