"""Comparison of two adapter folders, with one module of each in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lora_contract.errors import RegistryError
from lora_kernels.adapters import open_adapter
from lora_kernels.comparing.modules import Comparison, compare_modules, summed


def compare_folders(
    before: Path, after: Path, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> Comparison:
    """Compare two adapter folders. progress: called with modules done and modules in total.

    Raises RegistryError `unsupported` for types that are not low-rank products, `conflict` if a module's shapes differ.
    """
    with open_adapter(before) as one, open_adapter(after) as other:
        names = sorted({*one.modules, *other.modules})
        found = []
        for number, name in enumerate(names):
            mine = one.load(name) if name in one.modules else None
            theirs = other.load(name) if name in other.modules else None
            if mine and theirs and not one.shape(name).fits(other.shape(name)):
                raise RegistryError(
                    "conflict", f"{name} has different shapes in the adapters: they were trained on different bases."
                )
            found.append(compare_modules(mine, theirs))
            progress(number + 1, len(names))
        return summed(found)
