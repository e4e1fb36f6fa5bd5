"""A process whose Triton interprets. It loads torch once and forks a pytest for each file of tests that is asked for.

Each line of its input is a request, `{"arguments", "report", "log"}`; each line of its output the status of one.
"""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch  # noqa: F401
import triton  # noqa: F401

import lora_kernels.ops  # noqa: F401

REPORT = "LORA_KERNELS_TEST_REPORT"


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ[REPORT] = request["report"]
            status = 1
            try:
                status = int(pytest.main(request["arguments"]))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
