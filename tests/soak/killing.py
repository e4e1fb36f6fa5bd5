"""Processes killed at random moments while others push, move tags, merge, collect garbage and back up.

    python -m tests.soak.killing --database sqlite --kills 100
    python -m tests.soak.killing --database postgresql --store s3 --kills 200

Every kill is a SIGKILL of the API, the worker, both, a child of a job, a running backup, the S3 server or the
postmaster of PostgreSQL (or its immediate shutdown); the last two come back after at most four seconds. Over S3 the
store also answers 500 and 503, cuts and refuses connections and is slow, for as long (`--only "store cuts"`). What was
acknowledged is looked for in the end: versions byte by byte, moves of tags, merges. Exit 1 if anything is lost, a
number or a generation is missing, a request failed without a clear answer, a merge does not end or fails, or fsck finds
something. SOAK_LOGS names a folder for the logs of such a run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import httpx

from tests.registry.site import SHARED, Site, adapter_files, until
from tests.soak.site import ground
from tests.soak.victims import Victims
from tests.support import service
from tests.support.push import push

NAMES = ("a", "b", "c")
BACKUP_SECONDS = 120.0


class Siege:
    """What was acknowledged while processes were killed."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.versions: dict[tuple[str, int], dict[str, str]] = {}
        self.moves: set[int] = set()
        self.jobs: dict[str, dict[str, Any]] = {}
        """With the requests that they came from."""
        self.refused: Counter[str] = Counter()
        self.unclear: list[str] = []

    def run(self, work: Any, number: int) -> None:
        random_ = random.Random(number)
        while not self.over.is_set():
            try:
                with self.site.connect() as client:
                    while not self.over.is_set():
                        work(client, random_)
            except (httpx.HTTPError, AttributeError):  # killed, or not yet started again
                time.sleep(0.1)

    def noted(self, answer: httpx.Response) -> bool:
        if answer.status_code >= 400:
            with self.lock:
                found = problem_of(answer)
                self.refused[f"{answer.request.method} {answer.status_code} {found.get('code')}"] += 1
                if answer.status_code == 500 or not found.get("hint"):
                    self.unclear.append(f"{answer.request.method} {answer.url}: {answer.text[:300]}")
        return answer.status_code < 400

    def pushing(self, client: httpx.Client, random_: random.Random) -> None:
        name, files = random_.choice(NAMES), adapter_files(random_.randrange(10**9))
        answer = push(client, "siege", name, "adapter", files, base=f"{SHARED}/base")
        if self.noted(answer):
            number = answer.json()["version"]["number"]
            with self.lock:
                self.versions[name, number] = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}

    def tagging(self, client: httpx.Client, random_: random.Random) -> None:
        with self.lock:
            numbers = [number for name, number in self.versions if name == "a"]
        if numbers:
            target = {"target": f"v{random_.choice(numbers)}"}
            answer = client.put("/api/v1/repositories/siege/a/tags/prod", json=target)
            if self.noted(answer):
                with self.lock:
                    self.moves.add(answer.json()["generation"])
        time.sleep(0.05)

    def merging(self, client: httpx.Client, random_: random.Random) -> None:
        with self.lock:
            found = random_.choice(sorted(self.versions)) if self.versions else None
        if found is not None:
            request = {"adapters": [{"adapter": f"siege/{found[0]}:v{found[1]}"}], "to": f"siege/m{found[0]}"}
            answer = client.post("/api/v1/merges", json=request)
            if self.noted(answer):
                with self.lock:
                    self.jobs[answer.json()["id"]] = request
        time.sleep(2.0)


def problem_of(answer: httpx.Response) -> dict[str, Any]:
    if answer.headers.get("content-type") != "application/problem+json":
        return {}
    found: dict[str, Any] = answer.json()
    return found


def judge(siege: Siege, victims: Victims) -> list[str]:
    """Return what was lost."""
    site, wrong = siege.site, []
    path = "/api/v1/repositories/siege"
    with site.connect() as client:
        until(lambda: client.get("/readyz").status_code == 200, seconds=120)
        for name in sorted({name for name, _ in siege.versions}):
            numbers = []
            cursor = None
            while True:
                query = {"limit": 1000, **({"cursor": cursor} if cursor else {})}
                page = client.get(f"{path}/{name}/versions", params=query).json()
                numbers += [version["number"] for version in page["items"]]
                cursor = page.get("next_cursor")
                if not cursor:
                    break
            if numbers != list(range(len(numbers), 0, -1)):
                wrong.append(f"{name} has gaps: {numbers[:20]}")
        for (name, number), files in siege.versions.items():
            for file, digest in files.items():
                answer = client.get(f"{path}/{name}/versions/v{number}/files/{file}", follow_redirects=True)
                if answer.status_code != 200 or hashlib.sha256(answer.content).hexdigest() != digest:
                    wrong.append(f"{name}:v{number} {file}: {answer.status_code}")
        generations: list[int] = []
        cursor = None
        while True:
            query = {"limit": 1000, "tag": "prod", **({"cursor": cursor} if cursor else {})}
            page = client.get(f"{path}/a/history", params=query).json()
            generations += [move["generation"] for move in page["items"]]
            cursor = page.get("next_cursor")
            if not cursor:
                break
        if sorted(generations) != list(range(1, len(generations) + 1)) or not siege.moves <= set(generations):
            wrong.append(f"moves of the tag: {len(siege.moves - set(generations))} lost of {len(siege.moves)}")
        deadline = time.monotonic() + 600
        open_jobs, again = set(siege.jobs), set[str]()
        while open_jobs and time.monotonic() < deadline:
            victims.tend()
            for job in sorted(open_jobs):
                view = client.get(f"/api/v1/jobs/{job}").json()
                if view["state"] in ("done", "failed", "cancelled"):
                    open_jobs.discard(job)
                    # A job ends where its own process is killed, as if memory had run out, and can be asked for again.
                    if "killed by SIGKILL" in (view.get("error") or "") and job not in again:
                        again.add(job)
                        open_jobs.add(client.post("/api/v1/merges", json=siege.jobs[job]).json()["id"])
                    elif view["state"] != "done":
                        wrong.append(f"{job}: {view['state']} {view.get('error')}")
            time.sleep(0.5)
        wrong += [f"{job} does not end" for job in open_jobs]
        print(f"merges asked for again, for their own processes had been killed: {len(again)}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", choices=["sqlite", "postgresql"], required=True)
    parser.add_argument("--store", choices=["folder", "s3"], default="folder")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pause", type=float, default=1.5, help="mean seconds between two")
    parser.add_argument("--only", action="append", default=[], help="a kind of victim; may be repeated")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    extra = {"LORA_REG_LEASE_SECONDS": "3", "LORA_REG_LOG_LEVEL": "WARNING"}
    with ground(options.database, options.store, extra=extra) as prepared:
        site, random_ = prepared.site, random.Random(options.seed)
        siege, victims = Siege(site), Victims(prepared, random_, tuple(options.only))
        works = [siege.pushing, siege.pushing, siege.tagging, siege.merging]
        threads = [threading.Thread(target=siege.run, args=(work, number)) for number, work in enumerate(works)]
        for thread in threads:
            thread.start()
        struck = Counter[str]()
        begun = time.monotonic()
        for _ in range(options.kills):
            time.sleep(options.pause * random_.random() * 2)
            struck[victims.strike()] += 1
            if struck.total() % 10 == 0:
                print(f"{struck.total()} kills after {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        siege.over.set()
        for thread in threads:
            thread.join()
        victims.end(BACKUP_SECONDS)
        print(f"{options.kills} kills in {time.monotonic() - begun:.0f} s: {dict(struck)}")
        print(f"acknowledged: {len(siege.versions)} versions, {len(siege.moves)} moves, {len(siege.jobs)} merges")
        print(f"refused: {dict(siege.refused)}")
        wrong = [*siege.unclear, *judge(siege, victims)]
        for arguments in (["backup", str(prepared.folder / "backup")], ["fsck"]):
            done = subprocess.run(
                [sys.executable, "-m", "lora_registry.cli", *arguments],
                env=service.environment(site.data, site.extra),
                capture_output=True,
                text=True,
                check=False,
            )
            print(f"{arguments[0]}: {done.returncode} {(done.stderr or done.stdout).strip()[-300:]}")
            if done.returncode:
                wrong.append(f"{arguments[0]} ended with {done.returncode}")
        for line in wrong[:20]:
            print(line, file=sys.stderr)
        print(f"lost or wrong: {len(wrong)}")
        if wrong and (kept := os.environ.get("SOAK_LOGS")):
            shutil.copytree(site.data, kept, ignore=shutil.ignore_patterns("blobs", "tmp"), dirs_exist_ok=True)
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
