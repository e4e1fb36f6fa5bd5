"""Stands for a torch whose CUDA an import has initialized: a process that has imported it must not be forked."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.registry.processes import work

torch: Any = ModuleType("torch")
torch.cuda = SimpleNamespace(is_initialized=lambda: True)
sys.modules["torch"] = torch


def look(spec: dict[str, Any], report: Any) -> dict[str, Any]:
    return work.look(spec, report)
