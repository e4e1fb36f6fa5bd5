"""Checks of the tensors of one adapted module: completeness, dtypes, and shapes against the base's module and rank."""

from __future__ import annotations

from typing import Final

from lora_contract.adapter import lora
from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.report import CONFIG, CheckReport
from lora_contract.adapter.shapes import shape_fault
from lora_contract.adapter.sizes import size_fault
from lora_contract.adapter.slots import AdapterType, Slot
from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.base import BaseFingerprint
from lora_contract.modules import BaseModule
from lora_contract.tensors import ADAPTER_DTYPES, TensorEntry

_HINT_RANK: Final = f"Push the {CONFIG} that was saved with these weights: this one has another rank."
_HINT_SHAPE: Final = "Check that this adapter was trained on this base, and push the config saved with it."


class AdaptedModule(ModuleTensors):
    """The tensors of one adapted module. module: of the base; None if the path only contains modules of the base."""

    module: BaseModule | None = None


def check_group(
    group: AdaptedModule,
    config: AdapterConfig,
    kind: AdapterType,
    base: BaseFingerprint,
    rank: int,
    report: CheckReport,
) -> None:
    module = group.module
    assert module is not None
    module_kind = module.kind
    if config.peft_type == "LORA" and lora.is_embedding(group.tensors) and module.out == base.embedding_rows:
        module_kind = "embedding"
    if module_kind not in kind.kinds and not kind.prefix:
        report.add(
            "kind-not-adapted",
            f"The module {group.path} is a {module_kind} of the base, which {config.peft_type} does not adapt.",
            where=group.path,
            found=module_kind,
            expected=" or ".join(sorted(kind.kinds)),
            hint="Remove the module's tensors.",
        )
        return
    slots = lora.slots(config, module_kind) if config.peft_type == "LORA" else kind.slots
    by_suffix = {slot.suffix: slot for slot in slots}
    if kind.prefix is None:
        _check_halves(group, slots, config, report)
    bound: dict[str, int] = {}
    if config.peft_type == "ADALORA":
        kept = config.rank_pattern.get(f"{group.path}.lora_E")
        bound["k"] = sum(kept) if isinstance(kept, list) else rank
    for suffix, tensor in sorted(group.tensors.items()):
        slot = by_suffix.get(suffix) if kind.prefix is None else Slot(suffix, integer="indices" in suffix)
        if slot is None:
            report.add(
                "unknown-tensor",
                f"The tensor {tensor.name} has the suffix {suffix}, which the config of this {config.peft_type} "
                f"adapter does not enable for a {module_kind}.",
                where=tensor.name,
                found=suffix,
                expected=", ".join(by_suffix),
            )
            continue
        if not check_dtype(tensor, report, integer=slot.integer) or not slot.shapes:
            continue
        wrong = shape_fault(tensor.shape, slot.shapes, module, rank, bound)
        if wrong is not None:
            report.add(
                "rank-mismatch" if wrong.rank_only else "shape-mismatch",
                f"The tensor {tensor.name} has the shape {list(tensor.shape)}, expected {wrong.expected}"
                + (f" for rank {rank} of {CONFIG}." if wrong.rank_only else " from the base's module and the config."),
                where=tensor.name,
                found=str(list(tensor.shape)),
                expected=wrong.expected,
                hint=_HINT_RANK if wrong.rank_only else _HINT_SHAPE,
            )
    if module_kind == "experts" and config.peft_type == "LORA":
        _check_experts(group, module, report)
    fault = size_fault(kind, {suffix: tensor.shape for suffix, tensor in group.tensors.items()}, module, config.raw)
    if fault is not None:
        report.add(
            "shape-mismatch", f"The tensors of {group.path} do not fit it: {fault}.", where=group.path, found=fault
        )


def _check_halves(group: AdaptedModule, slots: tuple[Slot, ...], config: AdapterConfig, report: CheckReport) -> None:
    if config.use_dora and not any(suffix.startswith("lora_magnitude") for suffix in group.tensors):
        slots = (*slots, Slot("lora_magnitude_vector"))
    for slot in slots:
        if slot.required and slot.suffix not in group.tensors:
            report.add(
                "missing-tensor",
                f"The module {group.path} lacks {slot.suffix}; the file has only {', '.join(sorted(group.tensors))}.",
                where=group.path,
                found=", ".join(sorted(group.tensors)),
                expected=slot.suffix,
                hint="Save the adapter again; it is incomplete.",
            )


def _check_experts(group: AdaptedModule, module: BaseModule, report: CheckReport) -> None:
    a, b = group.tensors.get("lora_A.weight"), group.tensors.get("lora_B.weight")
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2:
        return
    if a.shape[0] != b.shape[1] or (module.experts and a.shape[0] % module.experts):
        wrong_shape(report, b, f"[*, {a.shape[0]}], and both a multiple of the {module.experts} experts")


def check_dtype(tensor: TensorEntry, report: CheckReport, *, integer: bool = False) -> bool:
    if tensor.dtype in ADAPTER_DTYPES or (integer and tensor.dtype in ("I32", "I64", "I16", "U8")):
        return True
    report.add(
        "dtype-refused",
        f"The tensor {tensor.name} has the dtype {tensor.dtype}, expected one of {', '.join(sorted(ADAPTER_DTYPES))}.",
        where=tensor.name,
        found=tensor.dtype,
        expected=", ".join(sorted(ADAPTER_DTYPES)),
        hint="Save the adapter in float32, bfloat16 or float16.",
    )
    return False


def wrong_shape(report: CheckReport, tensor: TensorEntry, expected: str) -> None:
    report.add(
        "shape-mismatch",
        f"The tensor {tensor.name} has the shape {list(tensor.shape)}, expected {expected}.",
        where=tensor.name,
        found=str(list(tensor.shape)),
        expected=expected,
    )
