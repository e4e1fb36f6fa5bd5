"""Compare sorted lists of blobs and copy or read many, some at a time. Memory does not grow with their number."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.backup.document import Item, name_of
from lora_registry.blobs.hashing import checked
from lora_registry.blobs.protocols import BlobReader, BlobWriter
from lora_registry.runtime.faults import fault_point

WRONG: Final = ("not-found", "corrupt", "digest-mismatch", "size-mismatch")
"""Codes of a blob that is missing or damaged, as opposed to a store that does not answer."""

Failed = Callable[[Digest, RegistryError], None]
Tell = Callable[[str], None]

_TELL_SECONDS: Final = 30.0


@dataclass(slots=True)
class Count:
    blobs: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.blobs += 1
        self.bytes += size


def split(wanted: Iterable[Item], present: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """Yield each wanted blob, and whether it is present with the same length. Both must be sorted by name."""
    rest = iter(present)
    current = next(rest, None)
    for where, size in wanted:
        name = name_of(where)
        while current is not None and name_of(current[0]) < name:
            current = next(rest, None)
        yield (where, size), current is not None and (name_of(current[0]), current[1]) == (name, size)


def missing(wanted: Iterable[Item], present: Iterable[Item]) -> Iterator[Item]:
    return (item for item, there in split(wanted, present) if not there)


def union(*lists: Iterable[Item]) -> Iterator[Item]:
    """Merge sorted lists; the first length of a name counts."""
    merged = heapq.merge(*lists, key=lambda item: name_of(item[0]))
    for _, same in groupby(merged, key=lambda item: name_of(item[0])):
        yield next(same)


def copy(
    items: Iterable[Item], source: BlobReader, target: BlobWriter, *, parallel: int, failed: Failed, tell: Tell
) -> Count:
    """Copy blobs to the same addresses, hashed on the way. failed: called for those that are missing or damaged.

    Raises RegistryError if a store does not answer; what was copied stays, so that the next attempt resumes.
    """

    def one(where: Digest, size: int) -> None:
        target.put(source.stream(where), digest=where, size=size)
        fault_point("backup.copied")

    return _for_each(items, one, parallel=parallel, failed=failed, tell=tell)


def verify(items: Iterable[Item], store: BlobReader, *, parallel: int, failed: Failed, tell: Tell) -> Count:
    """Read blobs and compare them with their digests."""

    def one(where: Digest, size: int) -> None:
        found = store.size(where)
        if found != size:
            raise RegistryError("not-found" if found is None else "size-mismatch", f"{where} has {found} bytes.")
        for _ in checked(store.stream(where), digest=where, size=size):
            pass

    return _for_each(items, one, parallel=parallel, failed=failed, tell=tell)


def _for_each(
    items: Iterable[Item], one: Callable[[Digest, int], None], *, parallel: int, failed: Failed, tell: Tell
) -> Count:
    count = Count()
    told = time.monotonic()
    pending: deque[tuple[Item, Future[None]]] = deque()

    def finish() -> None:
        nonlocal told
        (where, size), future = pending.popleft()
        try:
            future.result()
        except RegistryError as error:
            if error.code not in WRONG:
                raise
            failed(where, error)
        else:
            count.add(size)
        if time.monotonic() > told + _TELL_SECONDS:
            told = time.monotonic()
            tell(f"{count.blobs} blobs, {count.bytes} bytes so far")

    with ThreadPoolExecutor(parallel, thread_name_prefix="backup") as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(one, *item)))
                if len(pending) >= 2 * parallel:
                    finish()
            while pending:
                finish()
        except BaseException:
            for _, future in pending:
                future.cancel()
            raise
    return count
