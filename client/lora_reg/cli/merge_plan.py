"""merge --dry-run: the plan of a merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_reg.cli.derive import kernels, need_folders
from lora_reg.cli.output import to_object
from lora_reg.formatting.merge_plan import lines, touched_names

if TYPE_CHECKING:
    from lora_reg.cli.state import State


def print_plan(state: State, base_dir: Path, adapters: list[tuple[Path, float]], options: dict[str, Any]) -> None:
    """Plan a merge from the headers of its inputs and print it: in full as JSON, the changed tensors for people."""
    need_folders(base_dir)
    plan = to_object(kernels("merging", "Merging").plan_folder(base_dir, adapters, **options))
    state.output().result("lora-reg/merge-plan/1", {"plan": plan}, human=lines(plan), quiet=touched_names(plan))
