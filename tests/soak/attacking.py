"""Attacks on a running service, one after another, each with what it costs everybody else.

    python -m tests.soak.attacking --database sqlite
    python -m tests.soak.attacking --database postgresql --only "many tensors"

The service is a process with token login (`web page`: one without), a folder store, and a worker. Prints a table: what
the attacker was answered, the longest answer of /healthz (probed every 10 ms from another process), the same without
the time that the event loop waited for a processor, what the API and the largest child of a check gained in memory, and
processor time of both. Exit 1 if an answer of /healthz took longer than 100 ms for another reason than a busy machine,
or if the memory of the API grew by more than 64 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.registry.site import Site, open_site
from tests.soak.attacks import ATTACKS, MERGES, WEIGHTS, Attacker
from tests.soak.probing import Cost, watched
from tests.support import postgres

MAX_STALL, MAX_MEGABYTES = 0.1, 64


def web_page(folder: Path) -> tuple[str, Cost]:
    """F2, against a service without login."""
    with open_site("sqlite", folder, "") as site:
        site.start(by=subprocess.Popen)
        site.need_base()
        site.pushed("ns", "victim", 1)
        evil = {"Host": "rebound.evil.example", "Origin": "http://evil.example"}
        page, tag = {**evil, "Content-Type": "text/plain"}, "/api/v1/repositories/ns/victim/tags/prod"
        with watched(site.url, site.service.process.pid) as cost:
            answers = [
                site.client.post(f"{tag}/rollback", content=b"{}", headers=page),
                site.client.post(MERGES, content=b"{}", headers=page),
                site.client.get(f"/hf/ns/victim/resolve/main/{WEIGHTS}", headers={"Host": evil["Host"]}),
                site.client.delete("/api/v1/repositories/ns/victim/versions/v1", headers={"Host": evil["Host"]}),
                site.client.put(tag, json={"target": "v1"}, headers={"Origin": evil["Origin"]}),
            ]
        return ", ".join(str(answer.status_code) for answer in answers), cost


@contextlib.contextmanager
def attacked(database: str, folder: Path) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        url = ""
        if database == "postgresql":
            (folder / "shared").mkdir(parents=True)
            url = postgres._join(folder / "shared")
            stack.callback(postgres._leave, folder / "shared")
        extra = {"LORA_REG_AUTH": "token", "LORA_REG_LOG_LEVEL": "WARNING"}
        site = stack.enter_context(open_site(database, folder / "site", url, extra=extra))
        site.start(by=subprocess.Popen)
        site.need_worker()
        yield site


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--only", default="", help="attacks whose name contains this")
    options = parser.parse_args()
    chosen = {name: play for name, play in ATTACKS.items() if options.only in name}
    print(f"load before: {os.getloadavg()}", flush=True)
    failed = False

    def show(name: str, answer: str, cost: Cost) -> None:
        nonlocal failed
        missed = cost.own > MAX_STALL or cost.megabytes > MAX_MEGABYTES
        failed |= missed
        print(f"| {name} | {answer} | {cost.stall * 1000:.0f} | {cost.own * 1000:.0f} | {cost.megabytes:.0f} | "
              f"{cost.child_megabytes:.0f} | {cost.processor:.1f} |{' MISSED' * missed}", flush=True)  # fmt: skip

    print("| attack | answer | stall ms | own ms | API MB | child MB | processor s |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with attacked(options.database, folder / "attacked") as site:
            on = Attacker(site)
            for name, play in chosen.items():
                with watched(site.url, site.service.process.pid) as cost:
                    answer = play(on)
                show(name, answer, cost)
        if options.only in "F2: web page":
            show("F2: web page", *web_page(folder / "open"))
    print(f"load after: {os.getloadavg()}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
