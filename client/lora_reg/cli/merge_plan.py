"""What a merge would do, shown before it is done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_reg.cli.derive import kernels, need_folders
from lora_reg.cli.output import to_object
from lora_reg.formatting.merge_plan import lines, touched_names

if TYPE_CHECKING:
    from lora_reg.cli.state import State


def tell_plan(state: State, base_dir: Path, adapters: list[tuple[Path, float]], options: dict[str, Any]) -> None:
    """Print the plan of a merge, made from the headers of its inputs: all of it as JSON, what is touched for people."""
    need_folders(base_dir)
    plan = to_object(kernels("merging", "Merging").plan_folder(base_dir, adapters, **options))
    state.output().result("lora-reg/merge-plan/1", {"plan": plan}, human=lines(plan), quiet=touched_names(plan))
