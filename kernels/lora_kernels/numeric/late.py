"""numpy, imported when it is first used.

Planning reads the same modules as executing but computes nothing; loading numpy would take longer than the planning.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["np"]


class _Late(ModuleType):
    """A module whose attributes are looked up once, in the module of that name."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)
        return value


if TYPE_CHECKING:
    import numpy as np
else:
    np = _Late("numpy")
