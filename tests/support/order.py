"""Which tests belong together, which come first, and which are fast.

A unit is what one process of a run takes at once: a file, whose fixtures are then made once. Files whose jobs one worker
runs are a unit together. Tests that mostly wait, for kills and for leases, are units of their own.
"""

from __future__ import annotations

from typing import Any, Final

from xdist.scheduler import LoadScopeScheduling

APART: Final = (
    "tests/api/test_crash.py",
    "tests/api/test_document.py",
    "tests/api/test_gate_crash.py",
    "tests/architectures/test_sweep.py",
    "tests/house/test_readme.py",
    "tests/kernels/validating/test_suite.py",
)
"""Files whose tests share nothing that is expensive."""

WORKING: Final = {
    "tests/api": ("test_derivations.py", "test_gates.py", "test_merges.py"),
    "tests/client": ("test_derive.py", "test_diff.py", "test_gates.py", "test_jobs.py"),
}
"""Files of a folder that share a worker. With a matrix of databases it is one for each."""

FIRST: Final = (
    "tests/house/",
    "tests/e2e/",
    "tests/ci/",
    "tests/registry/",
    "tests/api/",
    "tests/kernels/validating/",
    "tests/client/",
    "tests/examples/",
    "tests/architectures/",
    "tests/kernels/",
    "tests/blobs/",
)
"""Folders in order, the others after them: what takes long begins, what is quick fills the end."""

SLOW: Final = (
    "tests/api/test_crash.py",
    "tests/api/test_document.py",
    "tests/api/test_gate_crash.py",
    "tests/api/test_process.py",
    "tests/api/test_races.py",
    "tests/api/test_terminal.py",
    "tests/blobs/test_memory.py",
    "tests/blobs/test_s3.py",
    "tests/client/test_validate_local.py",
    "tests/kernels/checkpoint/test_staging.py",
    "tests/kernels/ops/",
    "tests/kernels/merging/test_testbed.py",
    "tests/kernels/validating/",
    "tests/registry/jobs/",
    "tests/registry/processes/",
    "tests/registry/worker/",
)
"""Files and folders without a fast test: processes and crashes, trained models, Triton, and the fuzzer."""

SERVERS: Final = ("postgresql", "ministack", "swift")


def unit(nodeid: str) -> str:
    """The name of a test's unit."""
    file, _, test = nodeid.partition("::")
    folder, _, name = file.rpartition("/")
    if file in APART:
        return nodeid
    if name in WORKING.get(folder, ()):
        database = next((each for each in ("sqlite", "postgresql") if each in test), "")
        return f"{folder} with a worker {database}"
    return file


def rank(nodeid: str) -> int:
    """The place of a test's folder in the order."""
    return next((number for number, folder in enumerate(FIRST) if nodeid.startswith(folder)), len(FIRST))


def fast(nodeid: str, *, worker: bool) -> bool:
    """Whether `--fast` keeps a test: no server but the service in a thread, no job, no kill, no trained model."""
    test = nodeid.partition("::")[2]
    return not (worker or nodeid.startswith(SLOW) or "kill" in test or any(server in test for server in SERVERS))


class ByUnit(LoadScopeScheduling):
    """Units in the order in which their tests were collected."""

    def __init__(self, config: Any, log: Any = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)
