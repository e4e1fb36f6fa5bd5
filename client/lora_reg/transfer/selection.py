"""What of a folder is pushed, by names alone: what is left out is never opened.

    housekeeping         files of git and the like: never
    --exclude GLOB       and the lines of .loraregignore, as in .gitignore: the user's word
    by-products          of trainers, beside an adapter: `lora_contract.byproducts`
    anything else        of a base: whatever is not its config, weights, tokenizer or documentation

With `strict` only the first and `--exclude` count, and what is left is refused by the check.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from lora_contract import canonical, pipelines
from lora_contract.adapter.files import is_base_file, is_pipeline_file
from lora_contract.adapter.report import WEIGHTS
from lora_contract.byproducts import is_byproduct, is_housekeeping
from lora_contract.errors import RegistryError
from lora_reg.transfer.hub_cache import blobs_of_cache, is_inside

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE: Final = ".loraregignore"
MAX_BYTES: Final = 64 * 1024
MAX_STARS: Final = 3
"""In a line of a folder's own file, which may be a stranger's: each more multiplies the steps of a match by the length
of a name."""

Of = Literal["adapter", "base"]


class Selection:
    """Decides by its name whether an entry of a folder is left out.

    Args:
        folder: its root.
        of: what the folder holds; None: anything, so that nothing but housekeeping is left out.
        exclude: patterns of `--exclude`.
        strict: keep what is neither housekeeping nor excluded by `exclude`.
    """

    def __init__(
        self, folder: Path, of: Of | None = None, *, exclude: Sequence[str] = (), strict: bool = False
    ) -> None:
        lines = [] if strict or of is None else _ignored(folder)
        self._spec = _spec([*lines, *exclude])
        self._of = None if strict else of
        self._weights = os.path.lexists(folder / WEIGHTS)
        self._components = _components(folder) if self._of == "base" else frozenset()

    def leaves_out(self, path: str, *, folder: bool, link: bool = False) -> bool:
        """path: relative to the root. folder: it is a folder. link: its target is not looked at."""
        name = path.rpartition("/")[2]
        if is_housekeeping(name) and (self._of is not None or "/" not in path):
            return True
        if self._spec is not None and self._spec.match_file(path + "/" * folder):
            return True
        if self._of == "adapter":
            return is_byproduct(name, folder=folder or link, weights=self._weights)
        if self._of != "base":
            return False
        if folder:
            return path not in self._components
        inside = path.partition("/")[0] in self._components or path == pipelines.FILE
        return not (is_pipeline_file(path) if inside else is_base_file(path))


def _components(folder: Path) -> frozenset[str]:
    """The folders of a pipeline's components; empty if the folder holds no pipeline."""
    place = folder / pipelines.FILE
    if not place.is_file() or place.stat().st_size > MAX_BYTES:
        return frozenset()
    try:
        return pipelines.folders_of(
            canonical.loads_strict(place.read_bytes(), what=pipelines.FILE, max_bytes=MAX_BYTES)
        )
    except RegistryError:
        return frozenset()  # the check says what is wrong with it


def _ignored(folder: Path) -> list[str]:
    """Read the lines of the folder's .loraregignore. Raises `usage` if it is not a small text file."""
    place = folder / IGNORE_FILE
    if not os.path.lexists(place):
        return []
    followed = not place.is_symlink() or is_inside(str(place), blobs_of_cache(folder.resolve()))
    if not followed or not place.is_file():
        raise RegistryError("usage", f"{IGNORE_FILE} is not a regular file.", hint="Replace it with the file itself.")
    with place.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RegistryError("usage", f"{IGNORE_FILE} is not UTF-8 text.", hint="Save it as text.") from error
    if len(data) > MAX_BYTES:
        raise RegistryError("usage", f"{IGNORE_FILE} has more than {MAX_BYTES} bytes.", hint="Use fewer patterns.")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for line in lines:
        if line.replace("**", "*").count("*") > MAX_STARS:
            raise RegistryError(
                "usage",
                f"{IGNORE_FILE} has the pattern {line[:80]!r}, with more than {MAX_STARS} stars.",
                hint="Write it as several patterns, or give it as `--exclude`.",
            )
    return lines


def _spec(lines: Sequence[str]) -> GitIgnoreSpec | None:
    """Patterns as git reads them, the last match decides. Raises `usage` for one that git would not take."""
    patterns = [line for line in lines if line.strip()]
    if not patterns:
        return None
    from pathspec import GitIgnoreSpec  # most pushes exclude nothing

    try:
        return GitIgnoreSpec.from_lines(patterns)
    except ValueError as error:
        raise RegistryError(
            "usage", f"One of the patterns to exclude is not valid: {error}.", hint="Write it as in a .gitignore."
        ) from error
