"""Checkpoints that the libraries of quantization write, and what they themselves dequantize them to.

The libraries run in a process of their own, with our torch: AutoGPTQ and AutoAWQ pin old versions of it, and their
packages are imported without the parts that need a GPU. What they made is kept under `.cache/`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

from tests.support.envs import CACHE, ensure_env, locked

REQUIREMENTS: Final = [
    "--no-deps",
    *("compressed-tensors==0.20.0", "loguru==0.7.3"),
    *("gptqmodel==7.7.0", "threadpoolctl==3.7.0", "device-smi==0.5.7", "pypcre==0.6.4", "tokenicer==0.0.14"),
    *("logbar==0.4.15", "torchao==0.18.0", "defuser==0.0.28", "dill==0.4.1"),
    *("auto-gptq==0.7.1", "autoawq==0.2.9"),
]
_SCRIPT: Final = Path(__file__).parent / "make.py"


def quantized_checkpoints() -> Path:
    """A folder with a folder for each case of `make.py`."""
    identity = hashlib.sha256(_SCRIPT.read_bytes() + repr(REQUIREMENTS).encode()).hexdigest()[:12]
    folder = CACHE / "quantized" / identity
    if (folder / ".complete").exists():
        return folder
    with locked(CACHE / "quantized.lock"):
        if not (folder / ".complete").exists():
            _make(folder)
    return folder


def _make(folder: Path) -> None:
    env = ensure_env("quantizers", REQUIREMENTS).parent
    shutil.rmtree(folder, ignore_errors=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(env), "platbase": str(env)})
    environment = {
        **os.environ,
        "PYTHONPATH": packages,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }
    result = subprocess.run(
        [sys.executable, str(_SCRIPT), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"{_SCRIPT.name} ended with {result.returncode}:\n{result.stdout[-3000:]}")
    (folder / ".complete").touch()
