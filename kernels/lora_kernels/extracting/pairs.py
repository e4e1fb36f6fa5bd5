"""Which tensors of a fine-tune and of its base belong together: by name, of the same shape, of readable types.

Headers alone are looked at. Nothing is left out: what cannot be compared is an error that names it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.modules import is_embedding_name, is_output_name
from lora_contract.tensors import FLOAT_DTYPES

# Buffers that follow from the config; older writers stored them, newer ones do not, and loaders pass over them.
_DERIVED: Final = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")
_NAMED: Final = 3


class Pair(NamedTuple):
    """One tensor on both sides."""

    tuned: BaseTensor
    base: BaseTensor

    @property
    def name(self) -> str:
        return self.base.name


class Pairs(NamedTuple):
    """All pairs by name, sorted. derived: tensors of one side alone that no loader reads."""

    pairs: dict[str, Pair]
    derived: tuple[str, ...]


def pair_tensors(tuned: BaseFingerprint, base: BaseFingerprint) -> Pairs:
    """Raises RegistryError `rejected` where a tensor stands on one side alone or has another shape there, and
    `unsupported` if one is not stored as floating-point numbers."""
    here, there = tuned.by_name(), base.by_name()
    alone = sorted(here.keys() ^ there.keys())
    derived = tuple(name for name in alone if name.endswith(_DERIVED))
    missing = [name for name in alone if name not in derived]
    for tensor in (here.get(name) or there[name] for name in missing):
        _refuse_quantized(tensor, "fine-tune" if tensor.name in here else "base")
    _refuse_missing([name for name in missing if name in there], "base", "fine-tune", tied=tuned.tied)
    _refuse_missing([name for name in missing if name in here], "fine-tune", "base", tied=base.tied)
    pairs = {name: Pair(here[name], there[name]) for name in sorted(here.keys() & there.keys())}
    for pair in pairs.values():
        _check(pair)
    return Pairs(pairs, derived)


def _check(pair: Pair) -> None:
    tuned, base = pair
    # Whole numbers are buffers, if both sides have them alike; anything else is quantized.
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
            hint="Give the full-precision checkpoint; dequantize it first where there is none.",
            tensor=tensor.name,
        )


def _refuse_missing(names: list[str], has: str, lacks: str, *, tied: bool) -> None:
    if not names:
        return
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    ties = " It ties its output layer to its input embedding." if tied and is_output_name(_module(names[0])) else ""
    raise RegistryError(
        "rejected",
        f"The {lacks} has no tensor {', '.join(names[:_NAMED])}{more}, which the {has} has.{ties}",
        hint="Give the base that the fine-tune started from, both saved by the same version of the library.",
        tensor=names[0],
        tensors=names,
    )


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _shape(tensor: BaseTensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a scalar"
