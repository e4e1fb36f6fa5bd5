"""Compare the rows of blobs with the store: missing and damaged bytes, and objects that no row names."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs.damage import damaged
from lora_registry.blobs.hashing import checked
from lora_registry.context import Context
from lora_registry.db.tables import Blob
from lora_registry.keeping import damage, store

Problem = Literal["missing", "damaged", "orphan"]
_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Checked:
    """A blob that was looked at. problem: None if its bytes are right. was: the state of its row before.

    derived: versions with it that can be derived again from their recipes; others: the other live versions with it.
    """

    where: Digest
    size: int
    problem: Problem | None
    detail: str = ""
    was: str = "ok"
    derived: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


class Pace:
    """Keeps a reader below a rate, in bytes per second; None: no limit."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._begun = time.monotonic()
        self._read = 0

    def add(self, size: int) -> None:
        self._read += size
        if self._rate is not None and (ahead := self._read / self._rate - (time.monotonic() - self._begun)) > 0:
            time.sleep(ahead)


def check_rows(ctx: Context, *, sample: float = 1.0, rate: float | None = None, repair: bool) -> Iterator[Checked]:
    """Check every blob that should be in the store: its presence and length, and the digest of a random `sample`.

    repair: write what was found to the rows, so that the next push of a damaged blob stores it again.
    """
    pace = Pace(rate)
    last = ""
    while True:
        with ctx.db.read() as session:
            rows = store.kept_after(session, last, _BATCH)
        if not rows:
            return
        for row in rows:
            yield check_blob(ctx, row, read=random.random() < sample, pace=pace, repair=repair)
        last = rows[-1].digest


def check_oldest(ctx: Context, *, budget: int, rate: float | None) -> Iterator[Checked]:
    """Check the blobs whose last verification is the longest ago, until `budget` bytes were read; mark the rows.

    What was verified in half of the time for which a verification counts is left out.
    """
    pace = Pace(rate)
    age = int(ctx.settings.verified_seconds * 1_000_000 / 2)
    with ctx.db.read() as session:
        rows = store.longest_unverified(session, age=age, limit=_BATCH)
    for row in rows:
        if budget <= 0:
            return
        budget -= max(row.size, 1)
        yield check_blob(ctx, row, read=True, pace=pace, repair=True)


def check_blob(ctx: Context, row: Blob, *, read: bool, pace: Pace, repair: bool) -> Checked:
    """Check one blob. Raises RegistryError if the store does not answer."""
    where = store.place(row)
    error = _error_of(ctx, row, read=read, pace=pace)
    if error is None:
        if repair and read:
            if row.state != "ok":
                damage.mark(ctx, where, "ok")
            with ctx.db.write() as session:
                store.set_verified(session, where)
        return Checked(where, row.size, None, was=row.state)
    state: Problem = error.facts["blob"]["state"]
    with ctx.db.read() as session:
        current = store.blob(session, row.digest)
        users = store.users(session, row.digest)
    if current is None or (current.life, current.state in store.KEPT) != (row.life, True):
        return Checked(where, row.size, None, was=row.state)  # removed or replaced meanwhile
    if repair:
        damage.mark(ctx, where, state)
    derived = tuple(f"{repo.label}:v{version.number}" for repo, version in users if version.recipe_digest is not None)
    others = tuple(f"{repo.label}:v{version.number}" for repo, version in users if version.recipe_digest is None)
    return Checked(where, row.size, state, error.detail, row.state, derived, others)


def unnamed(ctx: Context) -> Iterator[Checked]:
    """List the objects that no row names: of uploads and jobs that have not committed yet, and what others left."""
    batch: list[tuple[Digest, int]] = []
    for item in ctx.blobs.list():
        batch.append(item)
        if len(batch) == _BATCH:
            yield from _unnamed(ctx, batch)
            batch = []
    yield from _unnamed(ctx, batch)


def _unnamed(ctx: Context, batch: list[tuple[Digest, int]]) -> Iterator[Checked]:
    with ctx.db.read() as session:
        rows = store.blobs(session, [str(where) for where, _ in batch])
    for where, size in batch:
        row = rows.get(str(where))
        if row is None or row.state == "absent" or store.place(row) != where:
            yield Checked(where, size, "orphan")


def _error_of(ctx: Context, row: Blob, *, read: bool, pace: Pace) -> RegistryError | None:
    """Return `corrupt` if the bytes are wrong. Raises other errors of the store."""
    where = store.place(row)
    try:
        size = ctx.blobs.size(where)
        if size is None:
            raise RegistryError("not-found", f"The store has no object for {where}.")
        if size != row.size:
            raise RegistryError("size-mismatch", f"{where} has {size} bytes; expected {row.size}.")
        if read:
            for chunk in checked(ctx.blobs.stream(where), digest=where, size=row.size):
                pace.add(len(chunk))
    except RegistryError as error:
        refusal = damaged(where, "The blob", error)
        if refusal.code != "corrupt":
            raise
        return refusal
    return None
