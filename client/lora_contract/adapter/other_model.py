"""An adapter of another model: told by its width, in one finding instead of one for each tensor."""

from __future__ import annotations

from typing import Final

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.report import CheckReport
from lora_contract.adapter.sorting import modules_in
from lora_contract.modules import BaseModules
from lora_contract.tensors import Header

_CONSEQUENCES: Final = frozenset({"shape-mismatch", "module-not-in-base", "missing-module", "vocabulary-rows"})
_NAME: Final = "base-mismatch"
_A: Final = "lora_A.weight"
_B: Final = "lora_B.weight"


def report_other_width(config: AdapterConfig, header: Header, modules: BaseModules, report: CheckReport) -> None:
    """Replace the findings on shapes and modules by one if all tensors agree on another hidden size."""
    embedding = modules.input_embedding()
    width = None if embedding is None else embedding.in_
    if width is None or config.peft_type != "LORA":
        return
    found = _width(config, header, modules, width)
    if found is None:
        return
    # To declare an alias, as the finding on the name suggests, would not help.
    other = report.has(_NAME)
    named = f", {(config.base_model or '')[:200]!r}" if other else ""
    report.forget(_CONSEQUENCES | {_NAME} if other else _CONSEQUENCES)
    report.add(
        "shape-mismatch",
        f"The adapter was trained on another model{named}: its hidden size is {found}, the base has {width}.",
        where="hidden_size",
        found=str(found),
        expected=str(width),
        hint="Name the base that it was trained on with `--base`; see `lora-reg base list`.",
    )


def _width(config: AdapterConfig, header: Header, modules: BaseModules, width: int) -> int | None:
    """The hidden size that all factors of the adapter agree on; None if they do not, or if it is that of the base."""
    ranks = {config.r, *config.rank_pattern.values()}
    seen: set[int] = set()
    for group in modules_in(config.peft_type, header):
        module = modules.resolve(group.path)
        a, b = group.tensors.get(_A), group.tensors.get(_B)
        if module is None or module.kind != "linear" or a is None or b is None:
            continue
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] not in ranks or b.shape[1] != a.shape[0]:
            return None  # not the factors that the config describes: their own findings say more
        if module.in_ == width:
            seen.add(a.shape[1])
        if module.out == width:
            seen.add(b.shape[0])
    return seen.pop() if len(seen) == 1 and width not in seen else None
