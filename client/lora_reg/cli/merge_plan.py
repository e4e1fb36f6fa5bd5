"""merge --dry-run: the plan of a merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_reg.cli.derive import kernels, need_folders
from lora_reg.cli.output import to_object
from lora_reg.formatting.merge_plan import lines, touched_names

if TYPE_CHECKING:
    from lora_reg.cli.state import State


def print_plan(
    state: State,
    base_dir: Path,
    adapters: list[tuple[Path, float]],
    options: dict[str, Any],
    *,
    device: str,
    digests: bool,
    threads: int | None,
) -> None:
    """Plan a merge from the headers of its inputs and print it: in full as JSON, the changed tensors for people.

    device, digests, threads: of the execution, whose device is chosen as for the merge itself.
    """
    need_folders(base_dir)
    merging = kernels("merging", "Merging")
    planned = merging.plan_folder(base_dir, adapters, **options)
    execution = to_object(merging.choose_device(planned, device, digests=digests, threads=threads))
    plan = to_object(planned)
    state.output().result(
        "lora-reg/merge-plan/1",
        {"plan": plan, "execution": execution},
        human=lines(plan, execution),
        quiet=touched_names(plan),
    )
