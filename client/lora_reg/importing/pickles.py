"""PyTorch files (`adapter_model.bin`) as safetensors: read in a child process that has no network and few rights.

The service never opens a pickle; the machine of the person who imports does, by PyTorch's weights-only loader.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from lora_contract.errors import RegistryError

CHILD: Final = Path(__file__).with_name("pickle_child.py")
SECONDS: Final = 1800
_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
"""Of the environment: no token is among them."""


def require_torch(name: str) -> None:
    """Raise `usage` if PyTorch is not installed. name: of the file that needs it."""
    if find_spec("torch") is None:
        raise RegistryError(
            "usage",
            f"{name} is a PyTorch file, and PyTorch is not installed here to read it.",
            hint="Install torch (`pip install torch`), or save the adapter with PEFT's save_pretrained, which writes "
            "safetensors.",
        )


def to_safetensors(source: Path, target: Path) -> None:
    """Write the tensors of a PyTorch file as safetensors. Raises RegistryError `rejected` with the reason, `usage`."""
    require_torch(source.name)
    environment = {key: os.environ[key] for key in _KEPT if key in os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as home:
        try:
            done = subprocess.run(
                [sys.executable, str(CHILD), str(source), str(target)],
                env=environment | {"HOME": home},
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            why = f"reading it took more than {SECONDS} s"
        else:
            if done.returncode == 0:
                return
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            why = said[-1] if said else f"the process that read it ended with status {done.returncode}"
    target.unlink(missing_ok=True)
    raise RegistryError(
        "rejected",
        f"{source.name} was not read: {why}.",
        hint="Load it where you trust it, save it with PEFT's save_pretrained(safe_serialization=True), and push that.",
    )
