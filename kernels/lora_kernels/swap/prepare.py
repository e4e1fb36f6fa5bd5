"""An adapter made ready for a swap: planned, checked, and computed once, before anything is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.checkpoint.sources import FolderSource
from lora_kernels.devices.accelerator import Accelerator
from lora_kernels.merging.base_copies import check_base_copies
from lora_kernels.merging.device.resident import ResidentMerge
from lora_kernels.merging.plan import MergePlan
from lora_kernels.merging.stats import MIN_KEPT, MergeReport, check_kept, merge_report
from lora_kernels.numeric.blocks import matrix
from lora_kernels.ops import LowRank
from lora_kernels.ops.tables import is_aligned
from lora_kernels.swap.installed import Installed, InstalledAdapter, digest_of_adapter
from lora_kernels.swap.kept import Keep, Kept, Memory
from lora_kernels.swap.parameters import Parameter, Parameters
from lora_kernels.swap.targets import Target, targets_of


@dataclass(frozen=True, slots=True)
class SwapAdapter:
    """An adapter to install.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        weight: in the sum of the merge.
        digest: of its version; None for the digest of its files.
        base: digest of the base that its version is pinned to, compared with the model's; None if unknown.
    """

    folder: str | os.PathLike[str]
    weight: float = 1.0
    digest: str | None = None
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """A tensor that the launch of a swap computes. shape: as a matrix. adapters: their factors, on the device."""

    parameter: Parameter
    shape: tuple[int, int]
    adapters: Sequence[LowRank]


@dataclass(frozen=True, slots=True)
class Result:
    """A tensor that no kernel of the launch covers: its merged values, copied by a swap."""

    parameter: Parameter
    values: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An adapter, or several, ready for the model that prepared it, any number of times.

    Args:
        installed: what the model is after the swap.
        updates: computed by the swap, in one launch for those of the same dtypes and form.
        results: copied by the swap.
        report: how much of the update survived rounding.
        keep: where results are.
        owner: the model.
    """

    installed: Installed
    updates: tuple[Update, ...]
    results: tuple[Result, ...]
    report: MergeReport
    keep: Keep
    owner: object

    @property
    def parameters(self) -> list[Parameter]:
        """Those that it writes."""
        return [*(update.parameter for update in self.updates), *(result.parameter for result in self.results)]

    @property
    def memory(self) -> Memory:
        """Bytes that it holds: factors on the device, and results where the base's bytes are kept, on the host if they
        are not kept."""
        factors = [factor for item in self.updates for adapter in item.adapters for factor in (adapter.a, adapter.b)]
        results = sum(item.values.nbytes for item in self.results)
        on_device = self.keep == "device"
        return Memory(0 if on_device else results, sum(factor.nbytes for factor in factors) + results * on_device)


def installed_of(
    adapters: Sequence[SwapAdapter], base: Installed, plan: MergePlan, accelerator: Accelerator
) -> Installed:
    """What a model is after a swap. Raises RegistryError `base-mismatch` for an adapter of another base."""
    for adapter in adapters:
        if adapter.base is not None and adapter.base != base.base:
            raise RegistryError(
                "base-mismatch",
                f"The adapter {os.fspath(adapter.folder)} is pinned to the base {adapter.base}; the model is "
                f"{base.base}.",
                hint="Swap adapters of the model's base.",
            )
    named = tuple(InstalledAdapter(one.digest or digest_of_adapter(one.folder), one.weight) for one in adapters)
    execution = accelerator.execution
    return Installed(
        base.base,
        named,
        base.dtype,
        plan.rounding,
        plan.seed if plan.rounding == "stochastic" else 0,
        execution.backend,
        execution.processor,
    )


def prepare(
    adapters: Sequence[SwapAdapter],
    *,
    plan: MergePlan,
    parameters: Parameters,
    base: FolderSource,
    installed: Installed,
    accelerator: Accelerator,
    kept: Kept,
    min_kept: float | None = MIN_KEPT,
    owner: object,
) -> Prepared:
    """Compute each touched tensor once, as a merge does, so that a swap meets nothing that it would have to refuse.

    kept: keeps the base's bytes of what is touched. For the rest see `ResidentModel.prepare`.
    """
    targets = targets_of(plan, parameters)
    with ExitStack() as stack:
        sources = [stack.enter_context(FolderSource(adapter.folder)) for adapter in adapters]
        check_base_copies(plan, base=base, adapters=sources)
        readers = [FactorReader(source, known.file) for source, known in zip(sources, plan.adapters, strict=True)]
        merge = ResidentMerge(base, readers, accelerator)
        made = [_made(target, merge, accelerator, kept.keep) for target in targets]
    check_kept(merge.stats, min_kept=min_kept)
    for target in targets:
        kept.hold(target.parameter)
    return Prepared(
        installed=installed,
        updates=tuple(item for item in made if isinstance(item, Update)),
        results=tuple(item for item in made if isinstance(item, Result)),
        report=merge_report(
            merge.stats,
            ignored=[name for adapter in plan.adapters for name in adapter.ignored],
            execution=accelerator.execution,
        ),
        keep=kept.keep,
        owner=owner,
    )


def _made(target: Target, merge: ResidentMerge, accelerator: Accelerator, keep: Keep) -> Update | Result:
    tensor, parameter = target
    merged = merge.tensor(tensor)
    shape = matrix(tensor.shape, tensor.columns)
    # If one of them is not aligned, Triton takes different kernels, and the sums another order.
    alike = is_aligned(parameter.values.view(shape)) == is_aligned(merged.values.view(shape))
    suited = alike or accelerator.execution.backend != "triton"
    if merged.part is not None and merged.part.kind == "low-rank" and suited:
        return Update(parameter, shape, merge.operands.adapters(merged.part))
    if keep == "device":
        return Result(parameter, merged.values)
    host = accelerator.host_buffer(merged.values.nbytes).view(merged.values.dtype).view(merged.values.shape)
    return Result(parameter, host.copy_(merged.values))
