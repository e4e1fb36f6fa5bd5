"""One healthy worker: what handlers return, how they fail, what followers see."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.registry.jobs.engine.conftest import Site
from tests.registry.jobs.engine.handlers import notes, starts

# fate of the child -> code, and what the sentence must say
FATES = {
    "rejected": ("rejected", "Tensor q_proj does not fit."),
    "memory": ("job-failed", "more memory than"),
    "exit": ("job-failed", "exit status 3 without a result: the last words"),
    "bug": ("job-failed", "exit status 1 without a result: ValueError: a bug in the work"),
    "segv": ("job-failed", "killed by SIGSEGV"),
    "kill": ("job-failed", "killed by SIGKILL, possibly because memory ran out"),
    "garbage": ("job-failed", "an unreadable message"),
}


def test_a_job_returns_the_result_of_its_handler(running: Site) -> None:
    running.enqueue("good")
    status = running.ended("good")
    assert (status.state, status.error, status.error_code, status.attempts) == ("done", None, None, 1)
    assert status.result["made"] == {"tensors": 3}
    assert status.worker
    assert running.rows("good") == 1
    assert [line["step"] for line in notes(running.journal("good"))] == ["plan", "execute", "check", "commit"]


def test_progress_is_followed_live_and_taken_up_again(running: Site) -> None:
    running.enqueue("told", tensors=4, pace=0.3)
    first = []
    for record in running.jobs.follow("told", timeout=20.0):
        first.append(record)
        if record.step == "execute":
            break
    assert running.state("told") == "running"
    rest = list(running.jobs.follow("told", offset=first[-1].offset + 1, timeout=20.0))
    assert running.state("told") == "done"
    whole = list(running.jobs.follow("told"))
    assert first + rest == whole
    assert [record.offset for record in whole] == list(range(len(whole)))
    assert (whole[0].step, whole[0].message) == ("plan", "begins")
    assert [record.message for record in whole if record.step == "log"] == ["4 tensors", "half of it is done"]
    last = [record for record in whole if record.step == "execute"][-1]
    assert (last.message, last.done, last.total, last.unit) == ("tensor 4", 4, 4, "tensors")
    assert list(running.jobs.follow("told", offset=len(whole))) == []


def test_parts_run_side_by_side_and_their_progress_is_one(running: Site) -> None:
    running.enqueue("parts", kind="parts", parts=["a", "b", "c"], at_once=2, together=2)
    assert running.ended("parts").result == {"made": ["made a", "made b", "made c"]}
    records = [record for record in running.jobs.follow("parts") if record.step == "part"]
    assert [(record.done, record.total, record.unit) for record in records] == [
        (10, 30, "bytes"),
        (20, 30, "bytes"),
        (30, 30, "bytes"),
    ]


def test_after_a_part_failed_no_other_begins(running: Site) -> None:
    running.enqueue("unfit", kind="parts", parts=["a", "b", "c", "d"], at_once=2, together=2, fails="b", waits=["a"])
    running.until(lambda: "part b" in running.recorded("unfit"))
    running.go("unfit")
    status = running.ended("unfit")
    assert (status.state, status.error_code, status.error) == ("failed", "rejected", "The part b does not fit.")
    assert {line["step"] for line in notes(running.journal("unfit"))} == {"a", "b"}


def test_the_end_of_a_child_is_told_clearly(running: Site) -> None:
    for fate in FATES:
        running.enqueue(f"fate-{fate}", fate=fate)
    for fate, (code, sentence) in FATES.items():
        status = running.ended(f"fate-{fate}")
        assert (status.state, status.error_code) == ("failed", code), fate
        assert sentence in (status.error or ""), fate
        assert starts(running.journal(f"fate-{fate}"), "execute") == 1, fate
        assert running.rows(f"fate-{fate}") == 0, fate
    log = [record.message for record in running.jobs.follow("fate-bug") if record.step == "log"]
    assert any("Traceback" in line and "a bug in the work" in line for line in log)


def test_a_child_that_takes_too_long_is_killed(running: Site) -> None:
    running.enqueue("slow", kind="hasty", tensors=1, pace=60)
    status = running.ended("slow")
    assert (status.state, status.error_code) == ("failed", "job-failed")
    assert "limit of 3 seconds" in (status.error or "")
    pid = next(line["pid"] for line in notes(running.journal("slow")) if line["step"] == "execute")
    assert not Path(f"/proc/{pid}").exists()


def test_a_child_holds_nothing_of_its_worker(running: Site) -> None:
    running.enqueue("held", fate="descriptors")
    held = running.ended("held").result["made"]["open"]
    assert held
    assert all(path.startswith(("pipe:", "/dev/", "/proc/")) for path in held), held


def test_a_step_is_tried_again_where_the_error_may_pass(running: Site) -> None:
    running.enqueue("flaky-3", kind="flaky", until=3, code="unavailable")
    running.enqueue("flaky-9", kind="flaky", until=9, code="storage-unavailable")
    running.enqueue("firm", kind="flaky", until=2, code="rejected")
    assert running.ended("flaky-3").result == {"attempts": 3}
    log = [record.message for record in running.jobs.follow("flaky-3")]
    assert log[0].startswith("flaky: attempt 1 of 3 failed: Attempt 1 failed.")
    for job, code, attempts in (("flaky-9", "storage-unavailable", 3), ("firm", "rejected", 1)):
        status = running.ended(job)
        assert (status.state, status.error_code, status.error) == ("failed", code, f"Attempt {attempts} failed.")
        assert status.error_hint == "Wait."
        assert starts(running.journal(job), "flaky") == attempts


def test_a_failed_job_is_started_again_and_keeps_its_finished_steps(running: Site) -> None:
    running.enqueue("again", kind="flaky", until=3, code="rejected")
    for attempt in (1, 2):
        assert running.ended("again").state == "failed"
        assert starts(running.journal("again"), "flaky") == attempt
        running.jobs.retry("again")
    running.until(lambda: running.state("again") == "done")
    status = running.ended("again")
    assert (status.result, status.error) == ({"attempts": 3}, None)
    assert starts(running.journal("again"), "first") == 1


@pytest.mark.parametrize(("code", "writes"), [("conflict", 1), ("unavailable", 3)])
def test_a_failed_transaction_leaves_nothing_and_can_be_repeated(running: Site, code: str, writes: int) -> None:
    job = f"tx-{code}"
    fail = Path(str(running.journal(job)) + ".fail")
    fail.touch()
    running.enqueue(job, kind="commits", code=code)
    status = running.ended(job)
    assert (status.state, status.error_code, status.error) == ("failed", code, "Somebody else was first.")
    assert starts(running.journal(job), "write") == writes
    assert running.rows(job) == 0
    fail.unlink()
    running.jobs.retry(job)
    running.until(lambda: running.state(job) == "done")
    assert running.rows(job) == 1
    assert starts(running.journal(job), "first") == 1


def test_a_bug_in_a_handler_fails_the_job(running: Site) -> None:
    running.enqueue("bug", kind="broken")
    status = running.ended("bug")
    assert (status.state, status.error_code, status.error) == ("failed", "job-failed", "KeyError: 'absent'")


@pytest.mark.parametrize("talks", [True, False])
def test_cancel_kills_the_child(running: Site, talks: bool) -> None:
    job = f"cancelled-{talks}"
    running.enqueue(job, tensors=200, pace=0.2, talks=talks)
    running.until(lambda: starts(running.journal(job), "execute") == 1)
    pid = next(line["pid"] for line in notes(running.journal(job)) if line["step"] == "execute")
    assert Path(f"/proc/{pid}").exists()
    begun = time.monotonic()
    running.jobs.cancel(job)
    assert running.state(job) == "cancelled"
    running.until(lambda: not Path(f"/proc/{pid}").exists(), within=3.0)
    assert time.monotonic() - begun < 3.0
    assert running.rows(job) == 0


def test_cancel_kills_all_parts(running: Site) -> None:
    running.enqueue("parted", kind="parts", parts=["a", "b", "c"], at_once=2, together=2, waits=["a", "b"])
    journal = running.journal("parted")
    running.until(lambda: len(notes(journal)) == 2)
    running.jobs.cancel("parted")
    processes = [Path(f"/proc/{line['pid']}") for line in notes(journal)]
    running.until(lambda: not any(process.exists() for process in processes))
    assert starts(journal, "c") == 0


def test_a_cancelled_job_started_again_goes_on_where_it_was(running: Site) -> None:
    running.enqueue("resumed", tensors=3, pace=0.5)
    running.until(lambda: starts(running.journal("resumed"), "execute") == 1)
    running.jobs.cancel("resumed")
    running.jobs.retry("resumed")  # at once, while the first child may still run
    running.until(lambda: running.state("resumed") == "done")
    assert [starts(running.journal("resumed"), step) for step in ("plan", "execute", "commit")] == [1, 2, 1]
    assert running.rows("resumed") == 1


def test_a_worker_leaves_other_queues_alone(running: Site) -> None:
    running.enqueue("elsewhere", queue="gpu")
    running.enqueue("here")
    assert running.ended("here").state == "done"
    assert running.state("elsewhere") == "queued"
