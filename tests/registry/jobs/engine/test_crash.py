"""Workers that die, freeze, are told to stop: the job is done once, by somebody."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from lora_registry.jobs.engine import lease_store as store
from lora_registry.jobs.engine.worker_process import EXIT_LEASE_LOST
from tests.registry.jobs.engine.conftest import QUICK, ROOT, Site
from tests.registry.jobs.engine.handlers import notes, starts

# point -> starts of (plan, execute, check, commit) when the job has been finished by another worker
POINTS = {
    "jobs.job.started": (1, 1, 1, 1),
    "jobs.step.plan.before": (1, 1, 1, 1),
    "jobs.step.plan.after": (2, 1, 1, 1),
    "jobs.step.plan.recorded": (1, 1, 1, 1),
    "jobs.step.execute.before": (1, 1, 1, 1),
    "jobs.child.execute.started": (1, 1, 1, 1),
    "jobs.step.execute.after": (1, 2, 1, 1),
    "jobs.step.execute.recorded": (1, 1, 1, 1),
    "jobs.step.check.after": (1, 1, 2, 1),
    "jobs.step.check.recorded": (1, 1, 1, 1),
    "jobs.transaction.commit.before": (1, 1, 1, 1),
    "jobs.transaction.commit.written": (1, 1, 1, 2),
    "jobs.transaction.checkpointed": (1, 1, 1, 2),
    "jobs.transaction.committed": (1, 1, 1, 1),
    "jobs.transaction.commit.recorded": (1, 1, 1, 1),
    "jobs.job.finished": (1, 1, 1, 1),
}


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _child(site: Site, job_id: str) -> int:
    """Process id of the job's child, once its work has begun."""
    site.until(lambda: starts(site.journal(job_id), "execute") > 0)
    return int(next(line["pid"] for line in notes(site.journal(job_id)) if line["step"] == "execute"))


def test_killed_at_every_point_another_finishes_and_there_is_one_result(site: Site) -> None:
    faults = {f"q{number}": point for number, point in enumerate(POINTS)}
    for queue, point in faults.items():
        site.enqueue(point, queue=queue)
    assert site.doomed(faults) == [-signal.SIGKILL] * len(POINTS), site.talk()
    site.worker(queues=list(faults))
    for point, expected in POINTS.items():
        status = site.ended(point, within=120.0)
        assert status.state == "done", (point, status.error)
        assert status.attempts == 2, point
        assert status.result["row"] > 0, point
        journal = site.journal(point)
        assert tuple(starts(journal, step) for step in ("plan", "execute", "check", "commit")) == expected, point
        assert site.rows(point) == 1, point


def test_killed_inside_each_step_while_another_worker_lives(site: Site) -> None:
    steps = ("plan", "execute", "check")
    first = site.worker(concurrency={"cpu": 3})
    for step in steps:
        site.enqueue(step, seconds={step: 60.0}, pace=60.0 if step == "execute" else 0.01)
    site.until(lambda: all(starts(site.journal(step), step) == 1 for step in steps))
    site.worker(concurrency={"cpu": 3})
    site.until(lambda: len(store.holders(site.database)) == 2)
    first.kill()
    took = site.until(lambda: all(starts(site.journal(step), step) == 2 for step in steps))
    assert took < 10.0  # a lease of 3 s and a tick of 0.3 s, on a busy machine
    for step in steps:
        site.go(step)
        assert site.ended(step).state == "done"
        assert [starts(site.journal(step), each) for each in (*steps, "commit")] == [
            1 + (each == step) for each in (*steps, "commit")
        ]
        assert site.rows(step) == 1


def test_killed_while_parts_run_only_the_unfinished_ones_are_done_again(site: Site) -> None:
    names = ["a", "b", "c", "d"]
    first = site.worker()
    site.enqueue("job", kind="parts", parts=names, at_once=3, together=3, waits=["b", "d"])
    journal = site.journal("job")
    site.until(lambda: starts(journal, "d") == 1)
    site.until(lambda: {"part a", "part c"} <= site.recorded("job"))
    first.kill()
    site.worker()
    site.until(lambda: starts(journal, "b") == starts(journal, "d") == 2)
    site.go("job")
    assert site.ended("job").result == {"made": [f"made {name}" for name in names]}
    assert [starts(journal, name) for name in names] == [1, 2, 1, 2]


def test_a_frozen_worker_that_wakes_up_in_a_step_writes_nothing(site: Site) -> None:
    zombie = site.worker()
    site.enqueue("a", seconds={"check": 60.0})
    site.until(lambda: starts(site.journal("a"), "check") == 1)
    site.freeze(zombie)
    site.worker()
    took = site.until(lambda: starts(site.journal("a"), "check") == 2)
    # A lease of 3 s; the same again where it froze while it held the lock of the job's row.
    assert took < 20.0
    site.go("a")
    assert site.ended("a").state == "done"
    records = len(list(site.jobs.follow("a")))
    zombie.send_signal(signal.SIGCONT)
    assert zombie.wait(10) == EXIT_LEASE_LOST
    assert len(list(site.jobs.follow("a"))) == records
    assert [starts(site.journal("a"), step) for step in ("plan", "execute", "check", "commit")] == [1, 1, 2, 1]
    assert site.rows("a") == 1
    assert "its lease was removed by another worker" in (site.folder / "worker-0.log").read_text()


@pytest.mark.parametrize("point", ["written", "checkpointed"])
def test_a_worker_frozen_in_its_transaction_and_woken_up_leaves_one_result(site: Site, point: str) -> None:
    fault = "jobs.transaction.commit.written" if point == "written" else "jobs.transaction.checkpointed"
    zombie = site.worker(fault=f"{fault}@stop")
    site.enqueue("a")
    site.until(lambda: starts(site.journal("a"), "commit") == 1)
    site.worker()
    if site.url.startswith("sqlite"):
        # It holds the only write lock: nobody can take its job over, and when it wakes up it is still the owner.
        time.sleep(4.0)
        assert site.rows("a") == 0
    elif point == "written":
        # It has not reached its checkpoint: the other commits, and the zombie's own comes too late.
        assert site.ended("a").state == "done"
        assert site.rows("a") == 1
    else:
        # It was still the owner when it last looked: the other waits for that checkpoint, and takes its result.
        site.until(lambda: starts(site.journal("a"), "commit") == 2)
        time.sleep(1.0)
        assert site.rows("a") == 0
    zombie.send_signal(signal.SIGCONT)
    assert site.ended("a").state == "done"
    if not site.url.startswith("sqlite"):
        assert zombie.wait(10) == EXIT_LEASE_LOST
    assert site.rows("a") == 1
    assert site.ended("a").result["row"] == (2 if point == "written" and not site.url.startswith("sqlite") else 1)


def test_the_child_dies_with_its_worker(site: Site) -> None:
    worker = site.worker()
    site.enqueue("a", tensors=1, pace=60)
    child = _child(site, "a")
    assert _alive(child)
    worker.kill()
    assert site.until(lambda: not _alive(child), within=5.0) < 2.0


def test_told_to_stop_it_hands_over_at_once(site: Site) -> None:
    worker = site.worker(lease_seconds=30.0)
    site.enqueue("a", tensors=3, pace=0.7)
    child = _child(site, "a")
    begun = time.monotonic()
    worker.terminate()
    assert worker.wait(10) == 0
    assert time.monotonic() - begun < 3.0
    assert not _alive(child)
    assert store.holders(site.database) == set()
    assert site.state("a") == "running"
    site.worker(lease_seconds=30.0)
    assert site.ended("a").state == "done"
    assert [starts(site.journal("a"), each) for each in ("plan", "execute", "commit")] == [1, 2, 1]
    assert site.rows("a") == 1


def test_two_live_workers_cannot_have_one_id(site: Site) -> None:
    site.worker(executor_id="host/gpu0")
    site.until(lambda: store.holders(site.database) == {"host/gpu0"})
    second = site.worker(executor_id="host/gpu0")
    assert second.wait(30) == 1
    assert "A live worker already runs as host/gpu0." in (site.folder / "worker-1.log").read_text()


def test_a_job_that_kills_its_workers_is_given_up(site: Site) -> None:
    site.enqueue("a", kind="poison", queue="q0")
    for _ in range(2):
        assert site.doomed({"q0": "jobs.step.execute.before"}) == [-signal.SIGKILL]
    site.worker(queues=["q0", "q1"])
    status = site.ended("a")
    assert (status.state, status.error_code) == ("failed", "job-failed")
    assert status.error is not None
    assert "died" in status.error
    site.jobs.retry("a")
    assert site.ended("a").state == "done"
    assert starts(site.journal("a"), "plan") == 1
    assert site.rows("a") == 1


def test_an_embedded_worker_ends_with_its_parent(site: Site) -> None:
    program = (
        "import json, os, subprocess, sys, time\n"
        "options = json.loads(sys.argv[2]) | {'parent_pid': os.getpid()}\n"
        "worker = subprocess.Popen([sys.executable, '-m', 'tests.registry.jobs.engine.program', sys.argv[1], json.dumps(options)])\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, site.url, json.dumps(QUICK)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        site.until(lambda: len(store.holders(site.database)) == 1)
        site.enqueue("a", tensors=1, pace=60)
        child = _child(site, "a")
    finally:
        parent.kill()
        parent.communicate()
    site.until(lambda: not _alive(worker) and not _alive(child), within=5.0)
    assert store.holders(site.database) == set()


def test_a_claim_whose_answer_was_lost_is_found(site: Site) -> None:
    """The database counts the job as a live worker's, which never heard of it."""
    site.worker(executor_id="deaf", queues=["cpu"], lease_seconds=1.0)
    site.enqueue("before")
    assert site.ended("before").state == "done"
    site.enqueue("waits", queue="gpu")
    table = "workflow_status" if site.url.startswith("sqlite") else "dbos.workflow_status"
    claim = f"UPDATE {table} SET status = 'PENDING', executor_id = 'deaf', owner_xid = 'x', queue_name = 'cpu'"
    with site.database.begin() as connection:
        connection.execute(text(f"{claim} WHERE workflow_uuid = 'waits'"))
        connection.execute(text(f"""UPDATE {table} SET attributes = '{{"queue": "cpu"}}'"""))
    assert site.ended("waits").state == "done"
    assert site.rows("waits") == 1
