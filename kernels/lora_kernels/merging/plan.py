"""The plan of a merge: pure data, made from headers alone, before a byte of a tensor is read.

A plan holds, for each file of the result, its tensors in the order of the base's file: where each comes from, what is
added to it, as which type it is stored. It prints as JSON (`msgspec.to_builtins`); the same inputs give the same plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.modules import modules_of
from lora_contract.tensors import write_header
from lora_kernels.checkpoint.folders import AdapterInput
from lora_kernels.merging.delta import Delta
from lora_kernels.merging.match import match_adapter
from lora_kernels.merging.precision import Precision
from lora_kernels.quantized.groups import logical_base
from lora_kernels.quantized.layout import Entry, Nf4Form, Quantized, entries_size, nf4_entries
from lora_kernels.types.forms.replace import Replacement
from lora_kernels.types.matching.tied import Tie, tie_of

OPERATION_VERSION: Final = 1
# transformers refuses a file whose metadata does not name the framework.
METADATA: Final = {"format": "pt"}


class TensorPlan(msgspec.Struct, frozen=True):
    """A tensor of the result. source_*: its bytes in a file of the base; start / end: its bytes in the result's file.

    columns: width of the tensor seen as a matrix if it is not the product of all dimensions but the first.
    quantized: how the base stores it, where not as `source_dtype`, which dequantizing it gives. through_nf4: what is
    added to is not the weight itself, but what NF4 leaves of it. seed: of stochastic rounding, None for the nearest.
    form: of a tensor that is written quantized, the result's `dtype` being NF4 then.
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

    @property
    def copied(self) -> bool:
        """Is copied byte by byte."""
        plain = self.quantized is None and not self.through_nf4
        return plain and not self.deltas and self.dtype == self.source_dtype

    @property
    def entries(self) -> list[Entry]:
        """The tensors of the result's file that hold it: one, or several that follow each other."""
        return _entries(self.name, self.shape, self.dtype, self.form)


class CopiedRun(NamedTuple):
    """Neighbouring tensors that are copied byte by byte. start: of the run in the result's file."""

    source_file: str
    source_start: int
    source_end: int
    start: int


class ShardPlan(msgspec.Struct, frozen=True):
    """A file of the result, of the same name as the base's. size: bytes, header included."""

    file: str
    size: int
    tensors: tuple[TensorPlan, ...]


class AdapterPlan(msgspec.Struct, frozen=True):
    """An adapter that goes in. ignored: its tensors that change nothing: copies of the base's own weights or of others
    of its own, state of the training."""

    file: str
    type: str
    weight: float
    ignored: tuple[str, ...]


class MergePlan(msgspec.Struct, frozen=True):
    """All of a merge. dtype: as asked for, None if every tensor keeps its own. untied: the output layer's weight,
    if the base shares it with the embedding and the result does not. untied_configs: paths of the nested
    configs that say so. onto, rounding, seed: see `plan_merge`.
    quantization: the result's `quantization_config`, None for none, "keep" for what the base's config says."""

    shards: tuple[ShardPlan, ...]
    adapters: tuple[AdapterPlan, ...]
    dtype: str | None
    untied: str | None = None
    untied_configs: tuple[str, ...] = ()
    onto: str = "fp"
    rounding: str = "nearest"
    seed: int = 0
    quantization: dict[str, Any] | Literal["keep"] | None = "keep"
    operation_version: int = OPERATION_VERSION

    def shard(self, file: str) -> ShardPlan:
        """Raises RegistryError `not-found`."""
        for shard in self.shards:
            if shard.file == file:
                return shard
        raise RegistryError("not-found", f"The merge has no file {file!r}.")

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
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

    dtype: `bfloat16`, `float16` or `float32`, for every touched tensor and every other one of the checkpoint's main
    type (the floating-point type with the most bytes: tensors kept apart on purpose, such as a float32 router in a
    bfloat16 model, stay as they are); None to keep each tensor's own type. `nf4` for linear layers quantized as
    bitsandbytes does, all others keeping their own type. quantized: of a base that holds quantized weights, those that
    `read_quantized` finds; they become of the type that they had before, unless the dtype says otherwise.
    onto: `fp` to add to the base's weights as they are, `nf4` to add to what NF4 leaves of them, in all linear layers.
    rounding: `nearest`, or `stochastic` for touched tensors written as bfloat16 or NF4, its random numbers by `seed`.

    Nothing is skipped silently. Raises RegistryError `unsupported` for what cannot be merged, naming type and module,
    `rejected` for tensors that do not fit the base or lack their other half, and `invalid-request` for options that are
    unknown or do not go together.
    """
    quantized = quantized or {}
    raw, base = base, logical_base(base, quantized)
    modules = modules_of(base)
    precision = Precision.of(base, modules, quantized, dtype=dtype, onto=onto, rounding=rounding)
    tie = tie_of(modules)
    deltas: dict[str, list[Delta]] = {}
    plans = []
    for index, adapter in enumerate(adapters):
        matched = match_adapter(index, adapter, base=base, modules=modules, tie=tie)
        for change in matched.changes:
            deltas.setdefault(change.tensor, []).append(Delta.of(index, change))
        plans.append(AdapterPlan(adapter.file, adapter.config.peft_type, adapter.weight, matched.ignored))
    parted = tie if tie is not None and _part(deltas, tie) else None
    _refuse_conflicts(deltas)
    precision.check(deltas, base)
    quantization = precision.quantization()
    precision, stored = precision.settle(raw, base, deltas)
    files: dict[str, list[BaseTensor]] = {}
    for tensor in (*stored, *(parted.written if parted is not None else ())):
        files.setdefault(tensor.file, []).append(tensor)
    drawn = seed if rounding == "stochastic" else None
    shards = [
        _shard(file, tensors, deltas=deltas, precision=precision, seed=drawn) for file, tensors in sorted(files.items())
    ]
    return MergePlan(
        shards=tuple(shards),
        adapters=tuple(plans),
        dtype=dtype,
        untied=parted.head.weight.name if parted is not None else None,
        untied_configs=parted.configs if parted is not None else (),
        onto=onto,
        rounding=rounding,
        seed=seed,
        quantization=quantization,
    )


def shard_header(shard: ShardPlan) -> bytes:
    """The canonical safetensors header of a file of the result, with its eight length bytes."""
    return write_header([entry for tensor in shard.tensors for entry in tensor.entries], METADATA)


def shard_size(plan: MergePlan, file: str) -> int:
    """Bytes of a file of the result, known before it is made."""
    return plan.shard(file).size


def copied_runs(shard: ShardPlan) -> Iterator[CopiedRun | TensorPlan]:
    """The tensors of a file in order, those that are copied side by side joined to one run."""
    run: CopiedRun | None = None
    for tensor in shard.tensors:
        follows = run is not None and (run.source_file, run.source_end) == (tensor.source_file, tensor.source_start)
        if run is not None and not (tensor.copied and follows):
            yield run
            run = None
        if not tensor.copied:
            yield tensor
        elif run is None:
            run = CopiedRun(tensor.source_file, tensor.source_start, tensor.source_end, tensor.start)
        else:
            run = run._replace(source_end=tensor.source_end)
    if run is not None:
        yield run


def _shard(
    file: str,
    tensors: Sequence[BaseTensor],
    *,
    deltas: Mapping[str, Sequence[Delta]],
    precision: Precision,
    seed: int | None,
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


def _part(deltas: dict[str, list[Delta]], tie: Tie) -> bool:
    """Whether the two layers are changed otherwise than each other, so that they must part. If both are changed alike
    they stay one tensor, and the changes are left with the one that the base's files hold."""
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
            f"{tensor}: adapters that change whole experts and others cannot be merged at once.",
            hint="Merge them one after the other.",
            tensor=tensor,
        )
    return next(iter(found), None)


def _refuse_conflicts(deltas: Mapping[str, Sequence[Delta]]) -> None:
    for tensor, parts in deltas.items():
        replacing = [delta for delta in parts if isinstance(delta.update, Replacement)]
        if replacing and len(parts) > 1:
            others = [delta for delta in parts if delta is not replacing[0]]
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
