"""mergekit in its own environment, created on first use, since its dependencies differ from ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks import fixtures
from benchmarks.process import ROOT

VERSION: Final = "0.1.5"


class NotInstalled(Exception):
    """mergekit could not be installed; the text says why."""


def command(base: Path, adapter: Path, out: Path, cache: Path) -> list[object]:
    """The command that merges. cache: a folder for its use that must not exist yet. Raises NotInstalled."""
    recipe = out.with_suffix(".yml")
    recipe.write_text(f"models:\n  - model: {base}+{adapter}\nmerge_method: passthrough\ndtype: bfloat16\n")
    options = ("--lora-merge-cache", cache, "--lazy-unpickle", "--no-copy-tokenizer")
    return [environment() / "bin/mergekit-yaml", recipe, out, *options]


def environment() -> Path:
    """The folder of the environment, created if it is missing. Raises NotInstalled."""
    folder = fixtures.root() / "envs" / f"mergekit-{VERSION}"
    marker = folder / ".made"
    if marker.exists():
        return folder
    steps: list[list[object]] = [
        [sys.executable, "-m", "venv", "--clear", folder],
        # Our constraints pin the torch build that PEFT is measured with.
        [folder / "bin/python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"mergekit=={VERSION}"],
    ]
    for step in steps:
        done = subprocess.run(list(map(str, step)), capture_output=True, text=True, check=False)
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            raise NotInstalled(last[-1].removeprefix("ERROR: "))
    marker.touch()
    return folder
