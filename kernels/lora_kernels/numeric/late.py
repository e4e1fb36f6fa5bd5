"""numpy, imported on first use.

Planning imports the same modules as execution but computes nothing; importing numpy would take longer than the plan.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["np"]


class _LazyModule(ModuleType):
    """A proxy that imports the module of its name on first access and caches attributes."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)
        return value


if TYPE_CHECKING:
    import numpy as np
else:
    np = _LazyModule("numpy")
