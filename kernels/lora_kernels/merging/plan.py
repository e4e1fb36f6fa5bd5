"""The plan of a merge: pure data, made from headers alone.

For each output file, a plan lists the tensors in the order of the base's file: the source of each, its updates and its
output dtype. It converts to JSON (`msgspec.to_builtins`); equal inputs give equal plans.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.modules import modules_of
from lora_contract.pipelines import is_pipeline
from lora_contract.tensors import write_header
from lora_kernels.checkpoint.folders import AdapterInput
from lora_kernels.merging.base_copies import Copy
from lora_kernels.merging.delta import Delta
from lora_kernels.merging.heads import merged_head
from lora_kernels.merging.parts import match_parts, refuse_options
from lora_kernels.merging.precision import Precision
from lora_kernels.quantized.layout import Entry, Nf4Form, Quantized, entries_size, nf4_entries
from lora_kernels.quantized.reading import logical_base
from lora_kernels.types.forms.replace import Replacement
from lora_kernels.types.matching.tied import Tie, tie_of

OPERATION_VERSION: Final = 1
# transformers refuses a file whose metadata does not name the framework.
METADATA: Final = {"format": "pt"}


class TensorPlan(msgspec.Struct, frozen=True):
    """A tensor of the result.

    Args:
        source_file, source_start, source_end: its bytes in a file of the base.
        start, end: its bytes in the output file.
        columns: width of the tensor as a matrix; None for the product of all dimensions but the first.
        quantized: its quantized form in the base, which dequantizes to `source_dtype`; None if it is not quantized.
        through_nf4: updates are added to the weight's NF4-dequantized values.
        seed: of stochastic rounding; None for rounding to nearest.
        form: quantized form of the output, whose `dtype` is then NF4.
        stored: its name in the files; None for `name`, in front of which a pipeline has the component.
    """

    name: str
    shape: tuple[int, ...]
    source_file: str
    source_dtype: str
    source_start: int
    source_end: int
    dtype: str
    start: int
    end: int
    deltas: tuple[Delta, ...] = ()
    columns: int | None = None
    quantized: Quantized | None = None
    through_nf4: bool = False
    seed: int | None = None
    form: Nf4Form | None = None
    stored: str | None = None

    @property
    def new(self) -> bool:
        """Whether the base does not have it: an adapter brings all of its values."""
        return self.source_end == self.source_start and math.prod(self.shape) > 0

    @property
    def copied(self) -> bool:
        """Whether its bytes are copied unchanged."""
        plain = self.quantized is None and not self.through_nf4
        return plain and not self.deltas and self.dtype == self.source_dtype

    @property
    def entries(self) -> list[Entry]:
        """The entries of the output file that store it: one, or several in sequence."""
        return _entries(self.stored or self.name, self.shape, self.dtype, self.form)


class CopiedRange(NamedTuple):
    """Adjacent tensors that are copied unchanged. start: offset in the output file."""

    source_file: str
    source_start: int
    source_end: int
    start: int


class ShardPlan(msgspec.Struct, frozen=True):
    """An output file, named like the base's. size: in bytes, including the header."""

    file: str
    size: int
    tensors: tuple[TensorPlan, ...]


class AdapterPlan(msgspec.Struct, frozen=True):
    """An adapter of the merge. ignored: names of tensors that change nothing: copies of base weights or of other
    tensors of the adapter, and training state. copies: those that must equal others (`check_base_copies`)."""

    file: str
    type: str
    weight: float
    ignored: tuple[str, ...]
    copies: tuple[Copy, ...] = ()


class MergePlan(msgspec.Struct, frozen=True):
    """The plan of a merge.

    Args:
        dtype: as requested; None if every tensor keeps its dtype.
        untied: the output layer's weight, if the base ties it to the embedding and the result does not.
        untied_configs: paths of the nested configs that then say so.
        onto, rounding, seed: see `plan_merge`.
        quantization: the result's `quantization_config`; None for none, "keep" for the base's.
        architecture, labels: of the result, if an adapter brings the head of a task; None if it keeps the base's.
    """

    shards: tuple[ShardPlan, ...]
    adapters: tuple[AdapterPlan, ...]
    dtype: str | None
    untied: str | None = None
    untied_configs: tuple[str, ...] = ()
    onto: str = "fp"
    rounding: str = "nearest"
    seed: int = 0
    quantization: dict[str, Any] | Literal["keep"] | None = "keep"
    architecture: str | None = None
    labels: int | None = None
    operation_version: int = OPERATION_VERSION

    def shard(self, file: str) -> ShardPlan:
        """The plan of a file. Raises RegistryError `not-found`."""
        for shard in self.shards:
            if shard.file == file:
                return shard
        raise RegistryError("not-found", f"The merge has no file {file!r}.")

    @property
    def size(self) -> int:
        """Total size of the weight files in bytes."""
        return sum(shard.size for shard in self.shards)


def plan_merge(
    base: BaseFingerprint,
    adapters: Sequence[AdapterInput],
    dtype: str | None = None,
    *,
    quantized: Mapping[str, Quantized] | None = None,
    onto: str = "fp",
    rounding: str = "nearest",
    seed: int = 0,
) -> MergePlan:
    """Plan the merge of `adapters`, in this order, into `base`.

    No tensor is skipped silently.

    Args:
        dtype: `bfloat16`, `float16` or `float32`, for touched tensors and all others of the checkpoint's main dtype
            (the floating-point dtype with the most bytes; a float32 router in a bfloat16 model stays float32). `nf4`
            quantizes linear layers as bitsandbytes does and keeps the dtype of others. None keeps all dtypes.
        quantized: quantized weights of the base, from `read_quantized`. Unless `dtype` differs, they get the dtype that
            they had before quantization.
        onto: `fp` to add to the base's weights as stored, `nf4` to add to the NF4-dequantized weights of linear layers.
        rounding: `nearest`, or `stochastic` for touched tensors written as bfloat16 or NF4.
        seed: of stochastic rounding.

    Raises RegistryError `unsupported` for what cannot be merged, with type and module, `rejected` for tensors that do
    not fit the base or lack their other half, and `invalid-request` for options that are unknown or conflict.
    """
    quantized = quantized or {}
    refuse_options(base, (dtype, onto))
    raw, base = base, logical_base(base, quantized)
    head = merged_head(base, adapters, quantized)
    if head is not None:
        base = head.base
        kept = base.by_name()
        quantized = {name: weight for name, weight in quantized.items() if name in kept}
    modules = modules_of(base)
    precision = Precision.of(base, modules, quantized, dtype=dtype, onto=onto, rounding=rounding)
    if head is not None:
        precision = precision.keeping(head.parameters)
    tie = tie_of(modules)
    deltas: dict[str, list[Delta]] = {}
    plans = []
    for index, adapter in enumerate(adapters):
        matched = match_parts(index, adapter, base=base, modules=modules, tie=tie)
        for change in matched.changes:
            deltas.setdefault(change.tensor, []).append(Delta.of(index, change))
        copies = tuple(
            msgspec.structs.replace(copy, quantized=quantized.get(copy.original.name))
            if copy.file is not None
            else copy
            for copy in matched.copies
        )
        plans.append(AdapterPlan(adapter.file, adapter.config.peft_type, adapter.weight, matched.ignored, copies))
    untied = tie if tie is not None and _untie(deltas, tie) else None
    _refuse_conflicts(deltas)
    precision.check(deltas, base)
    quantization = precision.quantization()
    precision, stored = precision.settle(raw, base, deltas)
    files: dict[str, list[BaseTensor]] = {}
    for tensor in (*stored, *(untied.written if untied is not None else ())):
        files.setdefault(tensor.file, []).append(tensor)
    used = seed if rounding == "stochastic" else None
    shards = [
        _shard(file, tensors, deltas=deltas, precision=precision, seed=used, pipeline=is_pipeline(base.config))
        for file, tensors in sorted(files.items())
    ]
    return MergePlan(
        shards=tuple(shards),
        adapters=tuple(plans),
        dtype=dtype,
        untied=untied.head.weight.name if untied is not None else None,
        untied_configs=untied.configs if untied is not None else (),
        onto=onto,
        rounding=rounding,
        seed=seed,
        quantization=quantization,
        architecture=head.architecture if head is not None else None,
        labels=head.labels if head is not None else None,
    )


def shard_header(shard: ShardPlan) -> bytes:
    """The canonical safetensors header of an output file, with its eight length bytes."""
    return write_header([entry for tensor in shard.tensors for entry in tensor.entries], METADATA)


def shard_size(plan: MergePlan, file: str) -> int:
    """Size of an output file in bytes, known before it is written."""
    return plan.shard(file).size


def coalesced(shard: ShardPlan) -> Iterator[CopiedRange | TensorPlan]:
    """The tensors of a file in order, with adjacent copied tensors coalesced."""
    copied: CopiedRange | None = None
    for tensor in shard.tensors:
        follows = copied is not None and (copied.source_file, copied.source_end) == (
            tensor.source_file,
            tensor.source_start,
        )
        if copied is not None and not (tensor.copied and follows):
            yield copied
            copied = None
        if not tensor.copied:
            yield tensor
        elif copied is None:
            copied = CopiedRange(tensor.source_file, tensor.source_start, tensor.source_end, tensor.start)
        else:
            copied = copied._replace(source_end=tensor.source_end)
    if copied is not None:
        yield copied


def _shard(
    file: str,
    tensors: Sequence[BaseTensor],
    *,
    deltas: Mapping[str, Sequence[Delta]],
    precision: Precision,
    seed: int | None,
    pipeline: bool,
) -> ShardPlan:
    ordered = sorted(tensors, key=lambda tensor: (tensor.start, tensor.end, tensor.name))
    plans = []
    for tensor in ordered:
        touched = tuple(deltas.get(tensor.name, ()))
        plans.append(
            TensorPlan(
                name=tensor.name,
                shape=tensor.shape,
                source_file=tensor.file,
                source_dtype=tensor.dtype,
                source_start=tensor.start,
                source_end=tensor.end,
                dtype=precision.dtype(tensor, touched=bool(touched)),
                start=0,
                end=0,
                deltas=touched,
                columns=_columns(tensor.name, touched),
                quantized=precision.quantized.get(tensor.name),
                through_nf4=precision.through_nf4(tensor.name),
                seed=seed if touched else None,
                form=precision.form(tensor),
                stored=tensor.name.partition(".")[2] if pipeline else None,
            )
        )
    header = write_header([entry for plan in plans for entry in plan.entries], METADATA)
    position, placed = len(header), []
    for plan in plans:
        end = position + entries_size(plan.entries)
        placed.append(msgspec.structs.replace(plan, start=position, end=end))
        position = end
    return ShardPlan(file=file, size=position, tensors=tuple(placed))


def _entries(name: str, shape: tuple[int, ...], dtype: str, form: Nf4Form | None) -> list[Entry]:
    return [(name, dtype, shape)] if form is None else nf4_entries(name, shape, form)


def _untie(deltas: dict[str, list[Delta]], tie: Tie) -> bool:
    """Whether the two layers change differently, so that the result unties them. If they change equally, they stay
    tied, and `deltas` keeps only the changes of the stored tensor."""
    if deltas.get(tie.head.weight.name) != deltas.get(tie.embedding.weight.name):
        return True
    if tie.absent is not None:
        deltas.pop(tie.absent.name, None)
    return False


def _columns(tensor: str, deltas: Sequence[Delta]) -> int | None:
    found = {delta.columns for delta in deltas}
    if len(found) > 1:
        raise RegistryError(
            "unsupported",
            f"{tensor}: adapters that change whole experts cannot be merged together with others.",
            hint="Merge them one after the other.",
            tensor=tensor,
        )
    return next(iter(found), None)


def _refuse_conflicts(deltas: Mapping[str, Sequence[Delta]]) -> None:
    for tensor, changes in deltas.items():
        replacing = [delta for delta in changes if isinstance(delta.update, Replacement)]
        if replacing and len(changes) > 1:
            others = [delta for delta in changes if delta is not replacing[0]]
            what = (
                "replace it" if len(replacing) > 1 else f"replaces it, and adapter {others[0].adapter + 1} adds to it"
            )
            who = " and ".join(str(delta.adapter + 1) for delta in replacing)
            raise RegistryError(
                "rejected",
                f"{tensor}: adapter {who} {what}; the result would depend on their order.",
                hint="Merge only one adapter that carries this module in modules_to_save.",
                tensor=tensor,
            )
