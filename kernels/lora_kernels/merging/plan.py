"""The plan of a merge: pure data, made from headers alone, before a byte of a tensor is read.

A plan holds, for each file of the result, its tensors in the order of the base's file: where each comes from, what is
added to it, as which type it is stored. It prints as JSON (`msgspec.to_builtins`); the same inputs give the same plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from lora_kernels.merging.delta import AdapterInput, Delta
from lora_kernels.merging.match import match_adapter
from lora_kernels.merging.match.tied import Tie, tie_of
from lora_reg.spec.base import BaseFingerprint, BaseTensor
from lora_reg.spec.errors import RegistryError
from lora_reg.spec.modules import modules_of
from lora_reg.spec.tensors import DTYPE_BYTES, FLOAT_DTYPES, write_header

OPERATION_VERSION: Final = 1
OUTPUT_DTYPES: Final[dict[str, str]] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
# transformers refuses a file whose metadata does not name the framework.
METADATA: Final = {"format": "pt"}


class TensorPlan(msgspec.Struct, frozen=True):
    """A tensor of the result. source_*: its bytes in a file of the base; start / end: its bytes in the result's file.

    columns: width of the tensor seen as a matrix where it is not the product of all dimensions but the first.
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

    @property
    def copied(self) -> bool:
        """Goes over byte by byte."""
        return not self.deltas and self.dtype == self.source_dtype


class CopiedRun(NamedTuple):
    """Neighbouring tensors that go over byte by byte. start: of the run in the result's file."""

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
    """All of a merge. dtype: as asked for, None where every tensor keeps its own. untied: the output layer's weight,
    where the base shares it with the embedding and the result does not."""

    shards: tuple[ShardPlan, ...]
    adapters: tuple[AdapterPlan, ...]
    dtype: str | None
    untied: str | None = None
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


def plan_merge(base: BaseFingerprint, adapters: Sequence[AdapterInput], dtype: str | None = None) -> MergePlan:
    """Plan the merge of `adapters`, in this order, into `base`.

    dtype: `bfloat16`, `float16` or `float32`, for every touched tensor and every other one of the checkpoint's main
    type (the floating-point type with the most bytes: tensors kept apart on purpose, such as a float32 router in a
    bfloat16 model, stay as they are); None to keep each tensor's own type.

    Nothing is skipped silently. Raises RegistryError `unsupported` for what cannot be merged, naming type and module,
    and `rejected` for tensors that do not fit the base or lack their other half.
    """
    if dtype is not None and dtype not in OUTPUT_DTYPES:
        raise RegistryError(
            "invalid-request", f"The output dtype is {dtype!r}; expected one of {', '.join(OUTPUT_DTYPES)}."
        )
    modules = modules_of(base)
    tie = tie_of(base, modules)
    deltas: dict[str, list[Delta]] = {}
    plans = []
    for index, adapter in enumerate(adapters):
        matched = match_adapter(index, adapter, base=base, modules=modules, tie=tie)
        for name, delta in matched.deltas:
            deltas.setdefault(name, []).append(delta)
        plans.append(AdapterPlan(adapter.file, adapter.config.peft_type, adapter.weight, matched.ignored))
    head = _untied(deltas, tie)
    _refuse_conflicts(deltas)
    output = OUTPUT_DTYPES[dtype] if dtype is not None else None
    main = _main_dtype(base.tensors)
    files: dict[str, list[BaseTensor]] = {}
    for tensor in (*base.tensors, *([head] if head is not None and tie is not None and not tie.stored else [])):
        files.setdefault(tensor.file, []).append(tensor)
    shards = [_shard(file, tensors, deltas=deltas, output=output, main=main) for file, tensors in sorted(files.items())]
    untied = head.name if head is not None else None
    return MergePlan(shards=tuple(shards), adapters=tuple(plans), dtype=dtype, untied=untied)


def shard_header(shard: ShardPlan) -> bytes:
    """The canonical safetensors header of a file of the result, with its eight length bytes."""
    return write_header([(tensor.name, tensor.dtype, tensor.shape) for tensor in shard.tensors], METADATA)


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
    output: str | None,
    main: str | None,
) -> ShardPlan:
    ordered = sorted(tensors, key=lambda tensor: (tensor.start, tensor.end, tensor.name))
    dtypes = [_output_dtype(tensor, touched=tensor.name in deltas, output=output, main=main) for tensor in ordered]
    header = write_header(
        [(tensor.name, dtype, tensor.shape) for tensor, dtype in zip(ordered, dtypes, strict=True)], METADATA
    )
    position = len(header)
    plans = []
    for tensor, dtype in zip(ordered, dtypes, strict=True):
        size = (tensor.end - tensor.start) // DTYPE_BYTES[tensor.dtype] * DTYPE_BYTES[dtype]
        plans.append(
            TensorPlan(
                name=tensor.name,
                shape=tensor.shape,
                source_file=tensor.file,
                source_dtype=tensor.dtype,
                source_start=tensor.start,
                source_end=tensor.end,
                dtype=dtype,
                start=position,
                end=position + size,
                deltas=tuple(deltas.get(tensor.name, ())),
                columns=_columns(tensor.name, deltas.get(tensor.name, ())),
            )
        )
        position += size
    return ShardPlan(file=file, size=position, tensors=tuple(plans))


def _untied(deltas: dict[str, list[Delta]], tie: Tie | None) -> BaseTensor | None:
    """The output layer's weight where it is changed otherwise than the embedding's, so that both must part. Where both
    are changed alike they stay one tensor, and the changes are left with the embedding's."""
    if tie is None or tie.head is None:
        return None
    if deltas.get(tie.head.name) != deltas.get(tie.weight.name):
        return tie.head
    if not tie.stored:
        deltas.pop(tie.head.name, None)
    return None


def _columns(tensor: str, deltas: Sequence[Delta]) -> int | None:
    found = {delta.columns for delta in deltas}
    if len(found) > 1:
        raise RegistryError(
            "unsupported",
            f"{tensor}: adapters that change whole experts and others cannot be merged at once.",
            way_out="Merge them one after the other.",
            tensor=tensor,
        )
    return next(iter(found), None)


def _output_dtype(tensor: BaseTensor, *, touched: bool, output: str | None, main: str | None) -> str:
    dtype = output if output is not None and (touched or tensor.dtype == main) else tensor.dtype
    if dtype == tensor.dtype and not touched:
        return dtype
    if tensor.dtype not in FLOAT_DTYPES:
        raise RegistryError(
            "unsupported",
            f"The base tensor {tensor.name} has the type {tensor.dtype}; a merge adds to floating-point weights only.",
            way_out="Merge onto the full-precision base.",
            tensor=tensor.name,
        )
    if dtype == "F64" or tensor.dtype == "F64":
        raise RegistryError(
            "unsupported",
            f"The base tensor {tensor.name} has the type F64; a merge computes in float32 and would lose digits.",
            way_out="Convert the base to float32 first.",
            tensor=tensor.name,
        )
    return dtype


def _main_dtype(tensors: Sequence[BaseTensor]) -> str | None:
    """The floating-point type that holds most bytes; None for a base without any."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in FLOAT_DTYPES:
            counts[tensor.dtype] += tensor.end - tensor.start
    return max(sorted(counts), key=lambda dtype: counts[dtype]) if counts else None


def _refuse_conflicts(deltas: Mapping[str, Sequence[Delta]]) -> None:
    for tensor, parts in deltas.items():
        replacing = [delta for delta in parts if delta.kind == "replace"]
        if replacing and len(parts) > 1:
            others = [delta for delta in parts if delta is not replacing[0]]
            what = (
                "replace it" if len(replacing) > 1 else f"replaces it, and adapter {others[0].adapter + 1} adds to it"
            )
            who = " and ".join(str(delta.adapter + 1) for delta in replacing)
            raise RegistryError(
                "rejected",
                f"{tensor}: adapter {who} {what}; the result would depend on their order.",
                way_out="Merge only one adapter that carries this module in modules_to_save.",
                tensor=tensor,
            )
