"""Threads that decode into the same struct for the first time, in a process of their own, which must not crash."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading, types
import msgspec
from lora_contract import decoding

sys.setswitchinterval(1e-6)
DEEP = 20
SOURCE = "import msgspec\\n" + "\\n".join(
    f"class S{i}(msgspec.Struct):\\n    a: 'list[S{i + 1}] | None' = None\\n    b: 'dict[str, int]' = {{}}" for i in range(DEEP)
) + f"\\nclass S{DEEP}(msgspec.Struct):\\n    a: int = 0"
for number in range(60):
    module = sys.modules[f"m{number}"] = types.ModuleType(f"m{number}")
    exec(SOURCE, module.__dict__)
    gate, found = threading.Barrier(6), []

    def use():
        gate.wait()
        found.append(USE)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert [each.a[0].a[0].b for each in found] == [{"x": 1}] * 6
"""
USES = {
    "text": """decoding.decode(b'{"a":[{"a":[{"b":{"x":1}}]}]}', module.S0)""",
    "values": """decoding.convert({"a": [{"a": [{"b": {"x": 1}}]}]}, module.S0)""",
}


@pytest.mark.parametrize("use", USES)
def test_many_threads_decode_at_once(use: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("USE", USES[use])], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")
