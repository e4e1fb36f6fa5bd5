import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
from lora_registry.runtime.faults import fault_point
for turn in range(4):
    fault_point("a.b")
    fault_point("a.b.c")
    print(turn, flush=True)
"""


def _run(fault: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "LORA_REG_FAULT"}
    if fault is not None:
        environment["LORA_REG_FAULT"] = fault
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize(("fault", "turns"), [("a.b", 0), ("a.b:1", 0), ("a.b:3", 2), ("a.b.c:2", 1)])
def test_the_process_dies_at_the_nth_pass(fault: str, turns: int) -> None:
    done = _run(fault)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == [str(turn) for turn in range(turns)]


@pytest.mark.parametrize("fault", [None, "", "a", "a.b.c.d", "a.b:9"])
def test_other_names_change_nothing(fault: str | None) -> None:
    done = _run(fault)
    assert (done.returncode, done.stdout.split()) == (0, ["0", "1", "2", "3"])


@pytest.mark.parametrize("fault", ["a.b:x", "a.b@kill", "a.b:-1"])
def test_a_wrong_setting_is_refused(fault: str) -> None:
    done = _run(fault)
    assert done.returncode == 1
    assert "expected name, name:N" in done.stderr


def test_stop_freezes_and_cont_goes_on() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"LORA_REG_FAULT": "a.b:2@stop"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        os.kill(process.pid, signal.SIGCONT)
        out, _ = process.communicate(timeout=30)
        assert (process.returncode, out.split()) == (0, ["0", "1", "2", "3"])
    finally:
        process.kill()
