"""The tensors of a plan that adapters touch, with the parameters that they are in the model. What does not fit is
refused here, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lora_contract.errors import RegistryError
from lora_kernels.merging.plan import MergePlan, TensorPlan
from lora_kernels.swap.parameters import Parameter, Parameters


class Target(NamedTuple):
    """A tensor to write, and where."""

    tensor: TensorPlan
    parameter: Parameter


def targets_of(plan: MergePlan, parameters: Parameters) -> list[Target]:
    """The tensors that a plan's adapters touch. Raises RegistryError `unsupported`, with the name, for one that the
    model does not have as the plan does."""
    _check_tie(plan, parameters)
    found: list[Target] = []
    for tensor in _touched(plan):
        parameter = parameters.found.get(tensor.name)
        if parameter is not None:
            found.append(Target(tensor, _checked(tensor, parameter)))
        elif not _is_tied_copy(tensor, plan, parameters):
            raise _missing(tensor, parameters)
    _check_memory(plan, parameters, found)
    # Tied layers that change equally are one memory, written once.
    return list({target.parameter.address: target for target in reversed(found)}.values())[::-1]


def _touched(plan: MergePlan) -> Iterator[TensorPlan]:
    for shard in plan.shards:
        for tensor in shard.tensors:
            if tensor.new:
                raise RegistryError(
                    "unsupported",
                    f"The adapter brings {tensor.name}, which the base does not have, so that nothing could be "
                    "restored in its place.",
                    hint="Merge the adapter and load the merged model.",
                    tensor=tensor.name,
                )
            if tensor.deltas:
                yield tensor


def _checked(tensor: TensorPlan, parameter: Parameter) -> Parameter:
    if parameter.dtype != tensor.dtype:
        raise RegistryError(
            "unsupported",
            f"{parameter.name} is {parameter.dtype} in the model, and a merge into the model's dtype gives "
            f"{tensor.dtype}.",
            hint="Load the model in one dtype, or in that of its files.",
            tensor=tensor.name,
        )
    return parameter


def _is_tied_copy(tensor: TensorPlan, plan: MergePlan, parameters: Parameters) -> bool:
    tie = parameters.tie
    layers = (tie.embedding.weight.name, tie.head.weight.name) if tie is not None else ()
    others = [name for name in layers if name != tensor.name and name in parameters.found]
    return plan.untied is None and tensor.name in layers and bool(others)


def _missing(tensor: TensorPlan, parameters: Parameters) -> RegistryError:
    some = f" It has parameters that the base does not, such as {parameters.unknown[0]}." if parameters.unknown else ""
    return RegistryError(
        "unsupported",
        f"The adapter changes {tensor.name}, and the model has no such parameter.{some}",
        hint="Pass dict(model.named_parameters()) of the model without PEFT's wrapper. Weights that transformers joins "
        "or stacks when it loads the model are not swapped: merge the adapter and load the merged model.",
        tensor=tensor.name,
    )


def _check_tie(plan: MergePlan, parameters: Parameters) -> None:
    tie = parameters.tie
    if tie is None:
        return
    layers = {tie.embedding.weight.name, tie.head.weight.name}
    touched = sorted({tensor.name for tensor in _touched(plan)} & layers)
    if plan.untied is not None and parameters.shared:
        raise RegistryError(
            "unsupported",
            f"The adapter changes {touched[0] if touched else plan.untied} alone, and the model has one tensor for "
            f"{tie.embedding.weight.name} and {tie.head.weight.name}: both layers would change.",
            hint="Merge the adapter and load the merged model, which has two tensors; or give the model two before it "
            "is opened.",
            tensor=touched[0] if touched else plan.untied,
        )
    if plan.untied is None and touched and tie.absent is not None and not parameters.shared:
        raise RegistryError(
            "unsupported",
            f"The adapter changes {touched[0]} as one tensor of two tied layers, and the model has two tensors for "
            "them.",
            hint="Load the model with its layers tied, as its config says.",
            tensor=touched[0],
        )


def _check_memory(plan: MergePlan, parameters: Parameters, found: list[Target]) -> None:
    """Refuse to write a tensor whose memory is that of another which does not change equally."""
    planned = {tensor.name: tensor for shard in plan.shards for tensor in shard.tensors}
    by_address: dict[int, list[str]] = {}
    for name, parameter in parameters.found.items():
        by_address.setdefault(parameter.address, []).append(name)
    for target in found:
        for name in by_address[target.parameter.address]:
            other = planned.get(name)
            if other is not None and other.deltas != target.tensor.deltas:
                raise RegistryError(
                    "unsupported",
                    f"{target.tensor.name} and {name} are one tensor in the model, and the adapter does not change "
                    "them equally.",
                    hint="Merge the adapter and load the merged model, which has two tensors.",
                    tensor=target.tensor.name,
                )
