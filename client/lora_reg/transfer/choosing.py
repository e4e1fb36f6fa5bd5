"""Folders that hold no adapter or base themselves, but whose folders do: which one is meant is the user's to say."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from lora_contract.adapter.report import CONFIG
from lora_contract.errors import RegistryError
from lora_contract.pipelines import FILE
from lora_reg.transfer.selection import Of

_MARKERS: Final[dict[Of, tuple[str, tuple[str, ...]]]] = {
    "adapter": (CONFIG, ("*", "snapshots/*")),
    # Folders of a pipeline have configs too: only those of a download cache are bases of their own.
    "base": ("config.json", ("snapshots/*",)),
}
_SHOWN: Final = 8
_NUMBER: Final = re.compile(r"(\d+)")


def require_itself(folder: Path, of: Of) -> None:
    """Check that not only the folders in a folder hold an adapter or a base.

    Raises RegistryError `usage` that names them; `facts["folders"]` lists them, the likely one last: that with the
    highest number.
    """
    marker, places = _MARKERS[of]
    if not folder.is_dir() or os.path.lexists(folder / marker) or (of == "base" and os.path.lexists(folder / FILE)):
        return
    found = sorted({path.parent for place in places for path in folder.glob(f"{place}/{marker}")}, key=_order)
    if not found:
        return
    names = [path.relative_to(folder).as_posix() for path in found]
    shown = ", ".join(names[-_SHOWN:]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    what = f"an {of}" if of == "adapter" else f"a {of}"
    raise RegistryError(
        "usage",
        f"{folder} holds no {marker}, so it is not {what}; its folders {shown} are."
        if len(names) > 1
        else f"{folder} holds no {marker}, so it is not {what}; its folder {shown} is.",
        hint=f"Name the folder that you mean, such as {found[-1]}.",
        folders=[str(path) for path in found],
    )


def _order(path: Path) -> list[tuple[int, str]]:
    """Numbers by value, so that checkpoint-1000 follows checkpoint-500."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBER.split(path.name)]
