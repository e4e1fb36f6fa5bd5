"""Handlers for the tests. Every start of a step leaves a line in a file, so that repetitions can be counted."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from sqlalchemy.orm import registry
from sqlmodel import Field, Session, SQLModel

from lora_contract.errors import RegistryError
from lora_registry.jobs.engine.kinds import JobContext, JobKind, Part, RetryPolicy, handled
from lora_registry.processes.child import ChildReporter


class Apart(SQLModel, registry=registry()):
    """Tables of the tests must not be taken for the service's own, which migrations are compared with."""


class Outcome(Apart, table=True):
    """What a job committed. No uniqueness: a second row must be possible for its absence to say something."""

    __tablename__ = "test_outcome"

    id: int | None = Field(None, primary_key=True)
    job_id: str
    pid: int


def note(journal: str, step: str) -> None:
    """Append one line, whole, whoever else writes."""
    with Path(journal).open("a") as file:
        file.write(json.dumps({"step": step, "pid": os.getpid()}) + "\n")


def notes(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


def starts(journal: Path, step: str) -> int:
    return sum(1 for line in notes(journal) if line["step"] == step)


def _pause(ctx: JobContext, spec: dict[str, Any], step: str) -> str:
    """A step that takes `spec["seconds"][step]`, or until the journal's `.go` is there, reporting every 50 ms."""
    note(spec["journal"], step)
    end = time.monotonic() + spec.get("seconds", {}).get(step, 0)
    while time.monotonic() < end and not Path(spec["journal"] + ".go").exists():
        ctx.progress(step, "working")
        time.sleep(0.05)
    return step


def _commit(session: Session, job_id: str, spec: dict[str, Any]) -> int:
    note(spec["journal"], "commit")
    row = Outcome(job_id=job_id, pid=os.getpid())
    session.add(row)
    session.flush()
    if spec.get("conflict"):
        raise RegistryError("conflict", "Somebody else was first.", current="v7")
    assert row.id is not None
    return row.id


def full(ctx: JobContext, spec: dict[str, Any]) -> dict[str, Any]:
    """plan (step), execute (child process), check (step), commit (transaction)."""
    ctx.progress("plan", "begins")
    plan = ctx.step("plan", _pause, ctx, spec, "plan")
    made = ctx.child("execute", execute, spec)
    ctx.log("half of it is done")
    check = ctx.step("check", _pause, ctx, spec, "check")
    row = ctx.transaction("commit", _commit, ctx.job_id, spec)
    return {"plan": plan, "made": made, "check": check, "row": row}


def execute(spec: dict[str, Any], report: ChildReporter) -> dict[str, Any]:
    """The child's work: `spec["tensors"]` turns of `spec["pace"]` seconds, or until the journal's `.go` is there.

    `spec["fate"]` is how it fails.
    """
    note(spec["journal"], "execute")
    total = spec.get("tensors", 3)
    report.log(f"{total} tensors")
    for done in range(1, total + 1):
        end = time.monotonic() + spec.get("pace", 0.01)
        while time.monotonic() < end and not Path(spec["journal"] + ".go").exists():
            time.sleep(0.01)
        if spec.get("talks", True):
            report.progress(f"tensor {done}", done=done, total=total, unit="tensors")
    match spec.get("fate"):
        case "rejected":
            raise RegistryError("rejected", "Tensor q_proj does not fit.", hint="Mend it.", tensor="q_proj")
        case "memory":
            raise MemoryError
        case "exit":
            print("the last words")
            os._exit(3)
        case "bug":
            raise ValueError("a bug in the work")
        case "segv":
            os.kill(os.getpid(), 11)
        case "kill":
            os.kill(os.getpid(), 9)
        case "garbage":
            report.send({"neither": "this nor that"})
        case "descriptors":
            return {"open": [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]}
    return {"tensors": total}


def large(spec: dict[str, Any], report: ChildReporter) -> dict[str, Any]:
    """Gives back more than any pipe holds, after as much talk."""
    print("x" * 300_000)
    for done in range(2000):
        report.progress("y" * 100, done=done)
    return {"back": spec["text"]}


def with_offspring(_spec: dict[str, Any], _report: ChildReporter) -> dict[str, Any]:
    """Ends without a result while a process that it started still holds its output."""
    pid = subprocess.Popen(["sleep", "60"]).pid
    print(f"started {pid}", flush=True)
    os._exit(4)


def parts(ctx: JobContext, spec: dict[str, Any]) -> dict[str, Any]:
    """Children side by side, one for each of `spec["parts"]`."""
    given = [Part(name, {**spec, "part": name}, 10) for name in spec["parts"]]
    return {"made": ctx.children("part", make_part, given, at_once=spec["at_once"])}


def make_part(spec: dict[str, Any], report: ChildReporter) -> str:
    """Waits until `spec["together"]` parts have begun, then for the journal's `.go`, if it is one of `spec["waits"]`."""
    journal, part = Path(spec["journal"]), spec["part"]
    note(spec["journal"], part)
    report.progress(part, done=10, total=10, unit="bytes")
    while len(notes(journal)) < spec["together"]:
        time.sleep(0.01)
    if part == spec.get("fails"):
        raise RegistryError("rejected", f"The part {part} does not fit.")
    while part in spec.get("waits", ()) and not Path(f"{journal}.go").exists():
        time.sleep(0.01)
    return f"made {part}"


def flaky(ctx: JobContext, spec: dict[str, Any]) -> dict[str, Any]:
    """A step that fails as `spec["code"]` says until it was started `spec["until"]` times."""

    def attempt() -> int:
        note(spec["journal"], "flaky")
        count = starts(Path(spec["journal"]), "flaky")
        if count < spec["until"]:
            raise RegistryError(spec["code"], f"Attempt {count} failed.", hint="Wait.", attempt=count)
        return count

    ctx.step("first", note, spec["journal"], "first")
    return {"attempts": ctx.step("flaky", attempt)}


def commits(ctx: JobContext, spec: dict[str, Any]) -> dict[str, Any]:
    """A transaction that writes and then fails while the file `spec["journal"] + ".fail"` exists."""

    def write(session: Session) -> None:
        note(spec["journal"], "write")
        session.add(Outcome(job_id=ctx.job_id, pid=os.getpid()))
        session.flush()
        if Path(spec["journal"] + ".fail").exists():
            raise RegistryError(spec["code"], "Somebody else was first.", current="v7")

    ctx.step("first", note, spec["journal"], "first")
    ctx.transaction("write", write)
    return {}


def broken(_ctx: JobContext, _spec: dict[str, Any]) -> dict[str, Any]:
    """A bug in a handler."""
    return {"x": {}["absent"]}


_QUICK = RetryPolicy(attempts=3, first_delay=0.1, backoff=2.0)

HANDLERS = [
    handled(JobKind("full", dict[str, Any], timeout=30.0, retry=_QUICK), full),
    handled(JobKind("poison", dict[str, Any], max_attempts=2, retry=_QUICK), full),
    handled(JobKind("hasty", dict[str, Any], timeout=3.0, retry=_QUICK), full),
    handled(JobKind("parts", dict[str, Any], timeout=60.0, retry=_QUICK), parts),
    handled(JobKind("flaky", dict[str, Any], retry=_QUICK), flaky),
    handled(JobKind("commits", dict[str, Any], retry=_QUICK), commits),
    handled(JobKind("broken", dict[str, Any]), broken),
]
KINDS = {one.kind.name: one.kind for one in HANDLERS}
