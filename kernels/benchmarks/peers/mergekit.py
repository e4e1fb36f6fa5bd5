"""mergekit in an environment of its own, made on first use: its dependencies are not ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks import fixtures
from benchmarks.process import ROOT

VERSION: Final = "0.1.5"


class NotThere(Exception):
    """mergekit could not be installed; the text says why."""


def command(base: Path, adapter: Path, out: Path, cache: Path) -> list[object]:
    """The process that merges. cache: a folder that it needs, and that must not exist. Raises NotThere."""
    recipe = out.with_suffix(".yml")
    recipe.write_text(f"models:\n  - model: {base}+{adapter}\nmerge_method: passthrough\ndtype: bfloat16\n")
    options = ("--lora-merge-cache", cache, "--lazy-unpickle", "--no-copy-tokenizer")
    return [environment() / "bin/mergekit-yaml", recipe, out, *options]


def environment() -> Path:
    """Raises NotThere."""
    folder = fixtures.root() / "envs" / f"mergekit-{VERSION}"
    made = folder / ".made"
    if made.exists():
        return folder
    steps: list[list[object]] = [
        [sys.executable, "-m", "venv", "--clear", folder],
        # Ours hold torch at the build that PEFT is measured with.
        [folder / "bin/python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"mergekit=={VERSION}"],
    ]
    for step in steps:
        done = subprocess.run(list(map(str, step)), capture_output=True, text=True, check=False)
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            raise NotThere(last[-1].removeprefix("ERROR: "))
    made.touch()
    return folder
