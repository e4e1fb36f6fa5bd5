"""Python environments of their own, for programs that tests run beside lora-reg.

A store to test against or an old client pins what our own environment does not want. Each such program gets a
virtual environment under `.cache/test-envs/` of the checkout, built once from its list of requirements.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CACHE: Final = Path(__file__).resolve().parents[2] / ".cache"
ENVS: Final = CACHE / "test-envs"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; other processes wait. The kernel frees it when a holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def ensure_env(name: str, requirements: list[str], python: str = sys.executable) -> Path:
    """Build the environment unless it is there; returns its `bin` folder.

    The folder's name carries a hash of requirements and interpreter, so a changed list makes a new one. Safe under
    pytest-xdist. Raises RuntimeError with pip's last lines where the installation fails, and leaves nothing half built.
    """
    identity = json.dumps([sorted(requirements), os.path.realpath(python)])
    folder = ENVS / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    done = folder / ".complete"
    if done.exists():
        return folder / "bin"
    with locked(ENVS / f"{folder.name}.lock"):
        if done.exists():
            return folder / "bin"
        shutil.rmtree(folder, ignore_errors=True)
        # A foreign PYTHONPATH would let pip take our packages for installed ones.
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        _run([python, "-m", "venv", str(folder)], clean)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "install", "--no-input", "--no-compile", *requirements], clean)
        done.touch()
    return folder / "bin"


def _run(command: list[str], environment: dict[str, str]) -> None:
    result = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout[-2000:]}")
