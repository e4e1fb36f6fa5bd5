"""Where kernels run in tests: on the GPU where there is one, else in Triton's interpreter.

The interpreter is chosen by TRITON_INTERPRET=1 before Triton is first imported, and other tests of the same process may
have imported it. So tests that ask for `device` run, where there is no GPU, in one child process per file, with that
variable set; each still passes or fails under its own name. The process that collects never interprets, which leaves it
free to compile (`test_aot.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.kernels.ops.interpreter import REPORT

IN_CHILD = REPORT in os.environ
ELSEWHERE = not (IN_CHILD or torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1")


class Ran(NamedTuple):
    """A child's results, outcome and text by node id, and all it said."""

    results: dict[str, tuple[str, str]]
    said: str


_ran: dict[Path, Ran] = {}
_interpreters: dict[pytest.Config, subprocess.Popen[str]] = {}


@pytest.fixture
def device() -> Iterator[torch.device]:
    """Where to put the tensors of a test whose kernels are called with backend="triton"."""
    # In the interpreter kernels are numpy, which warns of infinities that they make on purpose.
    with np.errstate(all="ignore"):
        yield torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not (ELSEWHERE and "device" in pyfuncitem.fixturenames):
        return None
    if pyfuncitem.path not in _ran:
        _ran[pyfuncitem.path] = _run_file(pyfuncitem)
    ran = _ran[pyfuncitem.path]
    outcome, text = ran.results.get(pyfuncitem.nodeid, ("failed", ran.said))
    if outcome == "skipped":
        pytest.skip(text)
    if outcome != "passed":
        pytest.fail(text, pytrace=False)
    return True


def _run_file(pyfuncitem: pytest.Function) -> Ran:
    """Run the chosen tests of the item's file that ask for `device` in a child."""
    chosen = [
        item.nodeid
        for item in pyfuncitem.session.items
        if item.path == pyfuncitem.path and isinstance(item, pytest.Function) and "device" in item.fixturenames
    ]
    options = ["-p", "no:cacheprovider", f"--confcutdir={Path(__file__).parent}"]
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder) / "report.jsonl", Path(folder) / "log"
        request = {"arguments": [*options, *chosen], "report": str(report), "log": str(log)}
        interpreter = _interpreter(pyfuncitem.config)
        assert interpreter.stdin
        assert interpreter.stdout
        interpreter.stdin.write(json.dumps(request) + "\n")
        interpreter.stdin.flush()
        status = interpreter.stdout.readline().strip()
        lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
        said = log.read_text(encoding="utf-8") if log.exists() else ""
    results = {name: (outcome, text) for name, outcome, text in map(json.loads, lines)}
    return Ran(results, f"The child ended with {status} and no result of this test:\n{said}")


def _interpreter(config: pytest.Config) -> subprocess.Popen[str]:
    """The process that runs them, started with the first; it ends with its input."""
    if config not in _interpreters:
        # Plugins that these tests do not need take longer to load than most of them to run.
        settings = {"TRITON_INTERPRET": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
        path = os.pathsep.join(str(config.rootpath / folder) for folder in (".", "client", "registry", "kernels"))
        _interpreters[config] = subprocess.Popen(
            [sys.executable, "-m", "tests.kernels.ops.interpreter"],
            cwd=config.rootpath,
            env=os.environ | settings | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        config.add_cleanup(_interpreters[config].communicate)
    return _interpreters[config]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if IN_CHILD and (report.when == "call" or report.outcome != "passed"):
        line = json.dumps([report.nodeid, report.outcome, str(report.longrepr or "")]) + "\n"
        with open(os.environ[REPORT], "a", encoding="utf-8") as file:
            file.write(line)
