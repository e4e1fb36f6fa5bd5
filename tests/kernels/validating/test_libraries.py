"""What is imported to validate."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import sys
from lora_kernels.validating.libraries import import_libraries
import_libraries()
import torch
print(torch.compile.__module__, *(name for name in ("peft", "bitsandbytes", "torch._inductor.lowering") if name in sys.modules))
"""


def test_peft_and_bitsandbytes_are_imported_without_the_compiler() -> None:
    clean = {name: value for name, value in os.environ.items() if name != "TORCH_COMPILE_DISABLE"}
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env={**clean, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["torch", "peft", "bitsandbytes"]), done.stderr
