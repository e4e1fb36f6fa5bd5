"""Which tests belong together, which come first, and which are fast.

A unit is what one process of a run takes at once: a file, whose fixtures are then made once. Files that share a worker
or S3 servers are a unit together. Tests that mostly wait, for kills and for leases, are units of their own.
"""

from __future__ import annotations

from typing import Any, Final

from xdist.scheduler import LoadScopeScheduling

APART: Final = (
    "tests/registry/crash/test_crash.py",
    "tests/registry/http/test_document.py",
    "tests/registry/crash/test_gate_crash.py",
    "tests/architectures/test_sweep.py",
    "tests/house/test_readme.py",
)
"""Files whose tests share nothing that is expensive."""

TOGETHER: Final = {
    "the S3 servers": (
        "tests/client/importing/test_buckets.py",
        "tests/e2e/test_long_uploads.py",
        "tests/e2e/test_real_servers.py",
        "tests/registry/blobs/test_memory.py",
        "tests/registry/blobs/test_protocols.py",
        "tests/registry/blobs/test_s3.py",
        "tests/registry/blobs/test_upload_parts.py",
        "tests/registry/hub/test_storage_and_rights.py",
        "tests/registry/worker/children/test_merge.py",
    ),
    "the registry's worker": (
        "tests/registry/derivations/test_merge.py",
        "tests/registry/derivations/test_routes.py",
        "tests/registry/gates/test_routes.py",
    ),
    "the client's worker": (
        "tests/client/cli/test_derive.py",
        "tests/client/cli/test_diff.py",
        "tests/client/cli/test_gates.py",
        "tests/client/cli/test_jobs.py",
    ),
}
"""Files that share what takes long to start: S3 servers, or a worker that has imported torch."""

FIRST: Final = (
    "tests/house/",
    "tests/e2e/",
    "tests/ci/",
    "tests/kernels/validating/",
    "tests/registry/",
    "tests/client/",
    "tests/examples/",
    "tests/architectures/",
    "tests/kernels/",
)
"""Folders in order, the others after them: what takes long begins, what is quick fills the end."""

SLOW: Final = (
    "tests/registry/crash/test_crash.py",
    "tests/registry/http/test_document.py",
    "tests/registry/crash/test_gate_crash.py",
    "tests/registry/test_serving.py",
    "tests/registry/test_races.py",
    "tests/registry/test_cli.py",
    "tests/registry/blobs/test_memory.py",
    "tests/registry/blobs/test_s3.py",
    "tests/client/cli/test_validate.py",
    "tests/kernels/checkpoint/test_staging.py",
    "tests/kernels/ops/",
    "tests/kernels/merging/test_testbed.py",
    "tests/kernels/validating/",
    "tests/registry/hub/test_channels.py",
    "tests/registry/hub/test_hf_command.py",
    "tests/registry/hub/test_hub_clients.py",
    "tests/registry/hub/test_peft.py",
    "tests/registry/hub/test_routes.py",
    "tests/registry/hub/test_storage_and_rights.py",
    "tests/registry/jobs/engine/",
    "tests/registry/processes/",
    "tests/registry/worker/",
)
"""Files and folders without a fast test: processes and crashes, trained models, Triton, and the fuzzer."""

SERVERS: Final = ("postgresql", "ministack", "swift")


def unit(nodeid: str) -> str:
    """The name of a test's unit."""
    file, _, test = nodeid.partition("::")
    if file in APART:
        return nodeid
    for shared, files in TOGETHER.items():
        if file in files:
            # A worker is started for each database.
            database = next((each for each in ("sqlite", "postgresql") if each in test and "worker" in shared), "")
            return f"{shared} {database}"
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
