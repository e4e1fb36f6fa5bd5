"""The cache of huggingface_hub: a folder for each repository, in which the files of a snapshot are links to blobs.

models--org--name/blobs/<etag>
models--org--name/snapshots/<commit>/adapter_config.json -> ../../blobs/<etag>
"""

from __future__ import annotations

import os
from pathlib import Path


def blobs_of_cache(root: Path) -> str | None:
    """Return the folder into which the links of a snapshot may point; None if `root` is in none. root: a real path."""
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots":
            blobs = folder.parent.parent / "blobs"
            return f"{blobs}{os.sep}" if blobs.is_dir() and not blobs.is_symlink() else None
    return None


def is_inside(link: str, blobs: str | None) -> bool:
    """Whether a link ends in this folder, however many links there are in between."""
    return blobs is not None and os.path.realpath(link).startswith(blobs)


def snapshot_of(name: str) -> Path | None:
    """Return the snapshot of a model that was downloaded to this machine; None if there is none, or several."""
    owner, slash, repository = name.partition("/")
    if not slash or "/" in repository or {owner, repository} & {"", ".", ".."}:
        return None
    folder = _cache() / f"models--{owner}--{repository}" / "snapshots"
    try:
        found = [
            entry
            for entry in folder.iterdir()
            if (entry / "config.json").is_file() or (entry / "model_index.json").is_file()
        ]
    except OSError:
        return None
    return found[0] if len(found) == 1 else None


def _cache() -> Path:
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(home).expanduser() / "hub"
