"""Adapters in a folder of this machine, or in the folders below it. Links are not followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from lora_contract.errors import RegistryError
from lora_reg.importing.fetch import sha256_of
from lora_reg.importing.grouping import group, name_of
from lora_reg.importing.items import Item, SourceFile, Unreadable, listing_digest

_MAX_FILES: Final = 200_000
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class FolderSource:
    """root: an existing folder, or one LoRA file. In metadata it is known by its last component alone."""

    root: Path

    def items(self) -> Iterator[Item | Unreadable]:
        root = self.root.resolve()
        if root.is_file():
            file = SourceFile(root.name, root.stat().st_size, location=str(root))
            yield self._item(root.name, root.stem, (file,))
            return
        for path, files in group(self.files()):
            yield self._item(f"{root.name}/{path}".rstrip("/"), name_of(path, root.name), files)

    def files(self) -> Iterator[SourceFile]:
        """All files below the folder."""
        root = self.root.resolve()
        count = 0
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                place = Path(folder) / name
                if place.is_symlink() or not place.is_file():
                    continue
                count += 1
                if count > _MAX_FILES:
                    raise RegistryError(
                        "usage", f"{root} has more than {_MAX_FILES} files.", hint="Name a folder below it."
                    )
                yield SourceFile(place.relative_to(root).as_posix(), place.stat().st_size, location=str(place))

    def _item(self, where: str, name: str, files: tuple[SourceFile, ...]) -> Item:
        hashed = tuple(replace(file, sha256=sha256_of(Path(file.location))) for file in files)
        return Item(f"folder:{where}", listing_digest(hashed), name, hashed, folder=self.root)

    @contextmanager
    def open(self, item: Item, file: SourceFile, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:  # noqa: ARG002
        with open(file.location, "rb") as stream:
            stream.seek(start)
            yield start, iter(lambda: stream.read(_CHUNK), b"")

    def close(self) -> None:
        pass
