"""Which files this process opens: an audit hook cannot be removed, so there is one, which is mostly asleep."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_seen: list[set[str]] = []
_hooked: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes | os.PathLike):
        for names in _seen:
            names.add(os.path.realpath(os.fsdecode(arguments[0])))


@contextlib.contextmanager
def opened_below(folder: Path) -> Iterator[set[str]]:
    """Collect what is opened or listed in a folder, as paths relative to it; complete at the end of the block."""
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    names: set[str] = set()
    found: set[str] = set()
    _seen.append(names)
    try:
        yield found
    finally:
        _seen.remove(names)
        root = folder.resolve()
        found.update(Path(name).relative_to(root).as_posix() for name in names if Path(name).is_relative_to(root))
