"""A backup while pushers, pullers, tag movers and deleters work and garbage is collected every second; then its restore.

    python -m tests.soak.backing_up --store folder --seconds 120
    python -m tests.soak.backing_up --store s3 --seconds 120

On PostgreSQL, restored into a new database and a folder. Prints how long the backup took beside the load, and what
became of every version that was acknowledged before it began. Exit 1 if one is neither whole nor deleted.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx

from tests.soak.collecting import Soak
from tests.soak.site import HASTE, ground
from tests.support import service
from tests.support.postgres import fresh_database


class Quiet(Soak):
    """Without purges: what is removed at once, on purpose, is not in a backup that has not come to it."""

    def deleting(self, client: httpx.Client, random_: random.Random, number: int) -> None:
        found = self.some(random_)
        if found is not None:
            self.note("delete", client.delete(f"/api/v1/repositories/soak/{found[0]}/versions/{found[1]}"))
        time.sleep(0.2)


def command(environment: dict[str, str], *arguments: str | Path) -> tuple[int, str, float]:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "lora_registry.cli", *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr, time.monotonic() - begun


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", choices=["folder", "s3"], required=True)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    with ground("postgresql", options.store) as prepared:
        site, folder, own = prepared.site, prepared.folder, prepared.postgres
        assert own is not None
        soak = Quiet(site, options.seconds)
        works = [soak.pushing] * 8 + [soak.pulling] * 4 + [soak.tagging] * 2 + [soak.deleting]
        threads = [threading.Thread(target=soak.run, args=(work, number)) for number, work in enumerate(works)]
        for thread in threads:
            thread.start()
        time.sleep(options.seconds / 3)
        environment = service.environment(site.data, site.extra)
        with soak.lock:
            before = list(soak.versions)
        status, said, seconds = command(environment, "backup", folder / "backup")
        print(f"backup: exit {status} after {seconds:.1f} s\n{said}")
        failed = status != 0
        for thread in threads:
            thread.join()
        print(f"operations: {sum(soak.counts.values())}, failed: {len(soak.problems)}; pushed: {len(soak.versions)}")
        print("\n".join(soak.problems[:5]))
        site.stop()
        with fresh_database(own.url) as url:
            target = service.environment(folder / "restored", {"LORA_REG_DATABASE_URL": url})
            for words in (("restore", folder / "backup"), ("fsck",)):
                status, said, seconds = command(target, *words)
                print(f"{words[0]}: exit {status} after {seconds:.1f} s\n{said}")
                failed |= status != 0
            running = service.InProcess(folder / "restored", {"LORA_REG_DATABASE_URL": url, **HASTE})
            found: Counter[str] = Counter()
            with httpx.Client(base_url=running.url, timeout=60) as client:
                for name, version, digests in before:
                    found[state(client, name, version, digests)] += 1
            running.stop()
        print(f"versions acknowledged before the backup: {dict(found)}")
        return 1 if failed or soak.problems or found.keys() - {"whole", "deleted before"} else 0


def state(client: httpx.Client, name: str, version: str, digests: dict[str, str]) -> str:
    for path, expected in digests.items():
        answer = client.get(f"/api/v1/repositories/soak/{name}/versions/{version}/files/{path}")
        if answer.status_code == 410:
            return "deleted before"
        if answer.status_code != 200 or hashlib.sha256(answer.content).hexdigest() != expected:
            return f"wrong: {answer.status_code}"
    return "whole"


if __name__ == "__main__":
    sys.exit(main())
