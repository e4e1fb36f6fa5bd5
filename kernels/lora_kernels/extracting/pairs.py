"""Pairing of the tensors of a fine-tune and its base, by name, from headers alone.

No tensor is skipped silently: one that cannot be compared raises an error with its name.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.modules import is_embedding_name, is_output_name
from lora_contract.tensors import FLOAT_DTYPES

# Buffers that are computed from the config; older writers stored them, newer ones do not, and loaders ignore them.
_DERIVED: Final = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")
_MAX_NAMED: Final = 3


class Pair(NamedTuple):
    """A tensor of both checkpoints."""

    tuned: BaseTensor
    base: BaseTensor

    @property
    def name(self) -> str:
        return self.base.name


class Pairs(NamedTuple):
    """All pairs by sorted name. derived: tensors of one checkpoint only that loaders ignore."""

    pairs: dict[str, Pair]
    derived: tuple[str, ...]


def pair_tensors(tuned: BaseFingerprint, base: BaseFingerprint) -> Pairs:
    """Pair the tensors of two checkpoints.

    Raises RegistryError `rejected` if a tensor is in only one of them or has different shapes, and `unsupported` if one
    is not stored as floating-point numbers.
    """
    ours, theirs = tuned.by_name(), base.by_name()
    unpaired = sorted(ours.keys() ^ theirs.keys())
    derived = tuple(name for name in unpaired if name.endswith(_DERIVED))
    missing = [name for name in unpaired if name not in derived]
    for tensor in (ours.get(name) or theirs[name] for name in missing):
        _refuse_quantized(tensor, "fine-tune" if tensor.name in ours else "base")
    _refuse_missing([name for name in missing if name in theirs], "base", "fine-tune", tied=tuned.tied)
    _refuse_missing([name for name in missing if name in ours], "fine-tune", "base", tied=base.tied)
    pairs = {name: Pair(ours[name], theirs[name]) for name in sorted(ours.keys() & theirs.keys())}
    for pair in pairs.values():
        _check(pair)
    return Pairs(pairs, derived)


def _check(pair: Pair) -> None:
    tuned, base = pair
    # Integers are buffers if dtypes and shapes agree; otherwise they are quantized weights.
    if tuned.dtype != base.dtype or tuned.shape != base.shape:
        for tensor, side in ((tuned, "fine-tune"), (base, "base")):
            _refuse_quantized(tensor, side)
    if tuned.shape != base.shape:
        vocabulary = is_embedding_name(_module(base.name)) or is_output_name(_module(base.name))
        why = ": its vocabulary was resized" if vocabulary and tuned.shape[1:] == base.shape[1:] else ""
        raise RegistryError(
            "rejected",
            f"{base.name} is {_shape(tuned)} in the fine-tune, but {_shape(base)} in the base{why}.",
            hint="Resize the base's vocabulary to the same number of rows, register it as a base, and extract from "
            "that."
            if why
            else "Give the base that the fine-tune started from.",
            tensor=base.name,
        )


def _refuse_quantized(tensor: BaseTensor, side: str) -> None:
    if tensor.dtype not in FLOAT_DTYPES:
        raise RegistryError(
            "unsupported",
            f"{tensor.name} is stored as {tensor.dtype} in the {side}; a difference needs floating-point numbers "
            f"({', '.join(sorted(FLOAT_DTYPES))}) on both sides.",
            hint="Give the full-precision checkpoint; if there is none, dequantize this one first.",
            tensor=tensor.name,
        )


def _refuse_missing(names: list[str], has: str, lacks: str, *, tied: bool) -> None:
    if not names:
        return
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    ties = " It ties its output layer to its input embedding." if tied and is_output_name(_module(names[0])) else ""
    raise RegistryError(
        "rejected",
        f"The {lacks} has no tensor {', '.join(names[:_MAX_NAMED])}{more}, which the {has} has.{ties}",
        hint="Give the base that the fine-tune started from, both saved by the same version of the library.",
        tensor=names[0],
        tensors=names,
    )


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _shape(tensor: BaseTensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a scalar"
