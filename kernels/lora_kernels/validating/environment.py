"""Environment of a report's measurements: backend, machine and library versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Final

_LIBRARIES: Final = ("lora-reg", "numpy", "torch", "transformers", "peft", "bitsandbytes")


def environment(*more: str) -> dict[str, str]:
    """Backend, machine and versions, without names of hosts, folders or users. more: further libraries that were
    used."""
    from lora_kernels.validating.models import device

    found = {name: importlib.metadata.version(name) for name in (*_LIBRARIES, *more) if _installed(name)}
    return {
        **found,
        "python": platform.python_version(),
        "backend": device().type,
        "machine": _machine(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text("utf-8"), flags=re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()
