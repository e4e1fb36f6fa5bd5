"""Pushers, pullers, tag movers and deleters while garbage is collected every second with a grace of two.

    python -m tests.soak.collecting --store folder --seconds 600
    python -m tests.soak.collecting --store s3 --seconds 600

On PostgreSQL, with two API processes and one worker. Prints how often each operation ended in which way, whether the
store holds the bytes of the live versions and no others in the end, and what fsck says. Exit 1 if anything failed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import threading
import time
import traceback
from collections import Counter
from typing import Any

import httpx
import sqlalchemy as sa

from lora_registry import settings
from lora_registry.keeping import fsck, tasks
from lora_registry.push import sessions
from lora_registry.wiring import open_context
from tests.registry.keeping.shelves import Shelf
from tests.registry.site import SHARED, Site, adapter_files
from tests.soak.site import ground
from tests.support import service
from tests.support.push import push

CONTENTS = 60
"""Different adapters: few, so that the same content is deleted and pushed again all the time."""
FINE = {
    ("pull", 410), ("pull", 404),  # deleted meanwhile
    ("tag", 412), ("tag", 410), ("tag", 404), ("untag", 404), ("untag", 412),
    ("delete", 409), ("delete", 410), ("delete", 404),  # a tag points to it; deleted by another
    ("undelete", 410), ("undelete", 409),  # too late; its content is another version
}  # fmt: skip


class Soak:
    def __init__(self, site: Site, seconds: float) -> None:
        self.site = site
        self.end = time.monotonic() + seconds
        self.counts: Counter[tuple[str, int]] = Counter()
        self.problems: list[str] = []
        self.lock = threading.Lock()
        self.versions: list[tuple[str, str, dict[str, str]]] = []
        self.contents = [self.content(seed) for seed in range(CONTENTS)]

    @staticmethod
    def content(seed: int) -> dict[str, bytes]:
        readme = (f"soak {seed}\n" * 400_000)[: (seed % 5) * 700_000 + 10]
        return {**adapter_files(seed), "README.md": readme.encode()}

    def note(self, operation: str, answer: httpx.Response) -> bool:
        with self.lock:
            self.counts[operation, answer.status_code] += 1
            fine = answer.status_code < 400 or (operation, answer.status_code) in FINE
            # A purge takes what sessions count on, too: it is for secrets.
            fine |= operation == "push" and answer.status_code == 409 and "is not stored any more" in answer.text
            if not fine:
                self.problems.append(f"{operation}: {answer.status_code} {answer.text[:300]}")
        return answer.status_code < 400

    def run(self, work: Any, number: int) -> None:
        with self.site.connect() as client:
            random_ = random.Random(f"{work.__name__}-{number}")
            while time.monotonic() < self.end:
                try:
                    work(client, random_, number)
                except Exception as error:  # noqa: BLE001  counted and shown
                    with self.lock:
                        self.counts[work.__name__, 0] += 1
                        self.problems.append(
                            f"{time.ctime()} {work.__name__}: {error!r} {traceback.format_exc(limit=3)}"
                        )

    def some(self, random_: random.Random) -> tuple[str, str, dict[str, str]] | None:
        with self.lock:
            return random_.choice(self.versions[-200:]) if self.versions else None

    def pushing(self, client: httpx.Client, random_: random.Random, number: int) -> None:
        files = random_.choice(self.contents)
        name = f"r{random_.randrange(12)}"
        answer = push(client, "soak", name, "adapter", files, base=f"{SHARED}/base")
        if self.note("push", answer):
            digests = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
            with self.lock:
                self.versions.append((name, f"v{answer.json()['version']['number']}", digests))

    def pulling(self, client: httpx.Client, random_: random.Random, number: int) -> None:
        found = self.some(random_)
        if found is None:
            time.sleep(0.1)
            return
        name, version, digests = found
        for path, expected in digests.items():
            url = f"/api/v1/repositories/soak/{name}/versions/{version}/files/{path}"
            if number % 2:
                url = f"/hf/soak/{name}/resolve/{version}/{path}"
            answer = client.get(url, follow_redirects=True)
            if answer.status_code == 404 and b"NoSuchKey" in answer.content:
                # The store, not the service. What was purged on the way is gone; nobody may be sent there again.
                answer = client.get(url, follow_redirects=False)
                if answer.is_redirect:
                    answer.status_code = 599
            if not self.note("pull", answer):
                return
            if hashlib.sha256(answer.content).hexdigest() != expected:
                with self.lock:
                    self.problems.append(f"pull: wrong bytes of {url}")

    def tagging(self, client: httpx.Client, random_: random.Random, number: int) -> None:
        found = self.some(random_)
        if found is not None:
            url = f"/api/v1/repositories/soak/{found[0]}/tags/t{number}"
            self.note("tag", client.put(url, json={"target": found[1]}))
            if random_.random() < 0.3:
                self.note("untag", client.delete(url))
        time.sleep(0.02)

    def deleting(self, client: httpx.Client, random_: random.Random, number: int) -> None:
        found = self.some(random_)
        if found is not None:
            url = f"/api/v1/repositories/soak/{found[0]}/versions/{found[1]}"
            query = {"purge": "true", "reason": "soak"} if random_.random() < 0.1 else {}
            if self.note("delete", client.delete(url, params=query)) and random_.random() < 0.3:
                time.sleep(random_.random() * 4)
                self.note("undelete", client.put(f"{url}/restoration"))
        time.sleep(0.05)


def settle(site: Site, shelf: Shelf, environment: dict[str, str]) -> list[str]:
    """Collect until nothing changes; compare the store with the live set, and run fsck. Returns what is wrong."""
    os.environ.update(environment)
    ctx = open_context(settings.load(environment))
    engine = sa.create_engine(site.database)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE upload_session SET expires_at = 1"))
        connection.execute(sa.text("UPDATE task_lease SET expires_at = 0, done_at = 0"))
    sessions.sweep(ctx)
    for _ in range(3):
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE orphan SET first_seen_at = 1"))
            connection.execute(sa.text("UPDATE task_lease SET expires_at = 0, done_at = 0"))
        tasks.collect_garbage(ctx, grace=0)
    query = (
        "SELECT DISTINCT b.digest, b.size FROM version_blob f JOIN version v ON v.id = f.version_id "
        "JOIN blob b ON b.digest = f.digest WHERE f.stored AND v.deleted_at IS NULL"
    )
    with engine.begin() as connection:
        live = {row.digest.removeprefix("sha256:"): row.size for row in connection.execute(sa.text(query))}
    stored = {name.partition(".")[0]: size for name, size in shelf.objects().items()}
    wrong = [
        f"fsck: {found.where} {found.problem} {found.detail}"
        for found in fsck.check_rows(ctx, repair=False)
        if found.problem
    ]
    wrong += [f"fsck: {found.where} has no row" for found in fsck.unnamed(ctx)]
    print(f"live: {len(live)} blobs, {sum(live.values())} bytes; store: {len(shelf.objects())} objects, "
          f"{sum(shelf.objects().values())} bytes; fsck: {len(wrong)} problems")  # fmt: skip
    if stored != live:
        wrong.append(
            f"the store has {len(stored.keys() - live.keys())} too many and {len(live.keys() - stored.keys())} too few"
        )
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", choices=["folder", "s3"], required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--pushers", type=int, default=8)
    parser.add_argument("--pullers", type=int, default=4)
    options = parser.parse_args()
    extra = {"LORA_REG_FSCK_SECONDS": "5", "LORA_REG_LOG_LEVEL": "INFO"}
    with ground("postgresql", options.store, extra=extra, arguments=("--workers", "2")) as prepared:
        site, shelf = prepared.site, prepared.shelf
        soak = Soak(site, options.seconds)
        works = (
            [soak.pushing] * options.pushers
            + [soak.pulling] * options.pullers
            + [soak.tagging] * 2
            + [soak.deleting] * 3
        )
        threads = [threading.Thread(target=soak.run, args=(work, number)) for number, work in enumerate(works)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for (operation, status), count in sorted(soak.counts.items()):
            print(f"{operation:10} {status:4} {count:7}")
        log = "".join(path.read_text("utf-8", "replace") for path in site.data.glob("worker-*.log"))
        print(f"removed while it ran: {log.count('was removed: nothing referred to it')} blobs")
        for worker in site.workers:
            worker.kill()
            worker.wait()
        wrong = settle(site, shelf, service.environment(site.data, site.extra))
        for line in (soak.problems + wrong)[:20]:
            print(line, file=sys.stderr)
        print(f"failed operations: {len(soak.problems)}; wrong in the end: {len(wrong)}")
        return 1 if soak.problems or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
