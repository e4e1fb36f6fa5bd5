"""Declarations of a PEFT type: its tensors, the modules it adapts, and its merge implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec

Shape = tuple[str | int, ...]
Shapes = Mapping[str, tuple[int, ...]]
SizeFault: TypeAlias = Callable[[Shapes, int, int, Mapping[str, Any]], str | None]
"""fault(shapes by suffix, out, in, config): what does not agree with the module, as a clause; None if all agrees."""


class Slot(msgspec.Struct, frozen=True):
    """A tensor of a module.

    Args:
        shapes: any of them; empty: not checked.
        integer: it holds indices, not values.
    """

    suffix: str
    shapes: tuple[Shape, ...] = ()
    required: bool = True
    integer: bool = False


class AdapterType(msgspec.Struct, frozen=True):
    """A PEFT type.

    Args:
        kinds: of base modules that it adapts.
        slots: the tensors of a module.
        prefix: instead of slots, what a segment of the names of its tensors begins with.
        globals_: model-level names, exact or ending in `.*` for a prefix.
        integer_globals: they may hold indices.
        inert: the adapter has no effect on a module if all values of any of these are zero.
        identity: nor if each of these holds nothing but the given value.
        factors: tensors whose product is the change, for the overflow bound.
        fault: checks sizes that shapes by symbols cannot express.
        limits: of tensors of indices: what the indices are below, as sizes of the module whose product counts, one
            limit for each of the tensor's first dimension, or one for all.
        targeted: target_modules decides.
        prompt: virtual tokens, no module of the base.
        mergeable: has a merged form (whether it is merged here is said by `room` or `unmerged`).
        room: the module of `lora_kernels.types` that merges it.
        unmerged: without a room: why, as the rest of a sentence.
    """

    kinds: frozenset[str] = frozenset({"linear"})
    slots: tuple[Slot, ...] = ()
    prefix: str | None = None
    globals_: tuple[str, ...] = ()
    integer_globals: bool = False
    inert: tuple[str, ...] = ()
    identity: tuple[tuple[str, int], ...] = ()
    factors: tuple[str, ...] = ()
    fault: SizeFault | None = None
    limits: dict[str, tuple[str, ...]] = {}
    targeted: bool = True
    prompt: bool = False
    mergeable: bool = True
    room: str | None = None
    unmerged: str | None = None
