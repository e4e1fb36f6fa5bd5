"""A process whose Triton interprets. It loads torch once and forks a pytest for each file of tests that is asked for.

Each line of its input is a request, `{"arguments", "report", "log"}`; each line of its output the status of one.
"""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch  # noqa: F401
from triton.runtime import interpreter

import lora_kernels.ops  # noqa: F401

REPORT = "LORA_KERNELS_TEST_REPORT"


_patched: set[str] = set()


def call(function: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
    """Call a function from a kernel. Triton's own patches triton.language again on each such call, half of all its
    time. Once is enough for the modules of Triton, which it never undoes; ours share what the launch has patched."""
    module = function.fn.__module__
    if module.startswith("triton.") and module not in _patched:
        interpreter._patch_lang(function.fn)
        _patched.add(module)
    try:
        return function.rewrite()(*args, **kwargs)
    except Exception as error:
        raise interpreter.InterpreterError(repr(error)) from error


def main() -> None:
    interpreter.InterpretedFunction.__call__ = call
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
