"""What each module does for the loss: whether it should do less, and whether it does anything.

A factor stands before what a module adds to its layer. The derivatives of the loss by all factors are one backward
pass.

Where all factors are 1, a derivative above 0 says that the module should do less: it *pulls* back. Training ends where
that is about 0, or below where it ended early. A module whose sign or scale is wrong pulls by about as much as it
harms, and alone; all of them pull where the whole is too strong, or was trained on too little for too long.

Where all factors are 1/2, the derivatives sum to about the loss of the adapter less that of the base, so each with its
sign turned is what the module *helps*. A module whose halves were exchanged, or that was trained on another base, pulls
at little and helps nothing.

A derivative at one point may be of the wrong sign for a module that helps only where the others are whole, and one that
learned a little by heart pulls back and helps all the same. Those that seem not to help, or that pull, are therefore
taken out, and what the loss rises by without them is measured.

None of it needs another version to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lora_contract.statistics import FEWEST, LEVEL, Interval, paired
from lora_kernels.validating.losses import Encoded, forward, losses, record_nats

# A pass with its way back costs about as much as four of losses, and there are two: on a quarter of the records they
# cost about what the losses of base and adapter do on all of them.
_FEW, _MANY, _PART = 16, 64, 4
# Nats per token, and as a share of the gain: the larger of both is the least that counts.
LEAST: Final = 0.005
SHARE: Final = 0.01
# Of the kernels for attention the plain one alone sums in a fixed order on every device.
_fixed_order = partial(sdpa_kernel, SDPBackend.MATH)
# Modules that are taken out one at a time.
_TRIED = 8
# What PEFT gives to its own layers beside what the layer below takes.
_OF_PEFT: Final = frozenset({"adapter_names", "alora_offsets"})

Told = Callable[[int, int], None]
Pair = tuple[Encoded, float]
"""A record, and its nats of the base alone."""


Table = list[list[float]]
"""(records, modules)"""


class Pulls:
    """Of each module, by its name in the base. All in nats per token.

    pull: derivative of the loss where the adapter is whole. help: where it is half, with its sign turned. still:
    modules that change nothing. doubtful: the others whose help is not above 0. gain: loss of the base less that of
    the adapter, on the same records. least: what counts. without: by modules taken out, how much higher the loss is.
    """

    def __init__(self, names: Sequence[str], gain: float, whole: Table, half: Table, tokens: list[int]) -> None:
        self.gain = gain
        self.least = max(LEAST, SHARE * gain)
        self._tokens = tokens
        self._whole = dict(zip(names, zip(*whole, strict=True), strict=True))
        helps = dict(zip(names, zip(*half, strict=True), strict=True))
        self.pull = {name: self._interval(column) for name, column in self._whole.items()}
        self.help = {name: self._interval([-value for value in column]) for name, column in helps.items()}
        self.still = {name for name in names if not any(self._whole[name]) and not any(helps[name])}
        self.doubtful = tuple(name for name in names if name not in self.still and self.help[name].mean <= 0)
        self.without: dict[tuple[str, ...], Interval] = {}

    def together(self, names: Sequence[str]) -> Interval:
        """The pull of some modules as one."""
        rows = zip(*(self._whole[name] for name in names), strict=True)
        return self._interval([sum(row) for row in rows] or [0.0] * len(self._tokens))

    def take_out(self, names: tuple[str, ...], more: Sequence[float]) -> None:
        """more: nats of each record without these modules, less those with all."""
        self.without[names] = self._interval(more)

    def _interval(self, values: Sequence[float]) -> Interval:
        found = paired(values, [0.0] * len(values), self._tokens, level=LEVEL)
        assert found is not None  # as there are records enough
        return found


def measure(model: Any, records: Sequence[tuple[Encoded, float | None]], told: Told) -> Pulls | None:
    """model: of PEFT. records: with their nats of the base alone. told: passes done, of how many.

    None where there is nothing to measure: fewer than FEWEST records, values that are not finite, or a type that wraps
    no module, as prompts and prefixes do.
    """
    chosen = _spread([(item, base) for item, base in records if base is not None and item.tokens])
    layers, items = _layers(model), [item for item, _ in chosen]
    if not layers or len(chosen) < FEWEST:
        return None
    model.requires_grad_(False)
    count = len(items)
    nats, whole = _derivatives(model, layers, items, 1.0, lambda done: told(done, 2 * count))
    _, half = _derivatives(model, layers, items, 0.5, lambda done: told(count + done, 2 * count))
    if not all(map(math.isfinite, chain(nats, *whole, *half))):
        return None
    tokens = [item.tokens for item in items]
    gain = (sum(base for _, base in chosen) - sum(nats)) / sum(tokens)
    found = Pulls(list(layers), gain, whole, half, tokens)
    for names in _to_take_out(found):
        rest = _losses_without(model, layers, names, items)
        more = [value - full for value, full in zip(rest, nats, strict=True) if value is not None]
        if len(more) == len(items):
            found.take_out(names, more)
    return found


def _to_take_out(found: Pulls) -> list[tuple[str, ...]]:
    """All that are in doubt together, then these and those that pull one at a time. Nothing of what is worse than its
    base: it is refused for its losses."""
    if found.gain <= 0:
        return []
    suspects = {*found.doubtful, *(name for name, pull in found.pull.items() if pull.low >= found.least)}
    worst = sorted(suspects, key=lambda name: (found.help[name].mean - found.pull[name].mean, name))[:_TRIED]
    return list(dict.fromkeys(names for names in [found.doubtful, *((name,) for name in worst)] if names))


def _losses_without(
    model: Any, layers: dict[str, Any], names: Sequence[str], items: Sequence[Encoded]
) -> list[float | None]:
    factors = torch.tensor([float(name not in names) for name in layers])
    with _factored(layers, factors, back=False), _fixed_order():
        return losses(model, items, lambda _done: None)


def _derivatives(
    model: Any, layers: dict[str, Any], items: Sequence[Encoded], at: float, told: Callable[[int], None]
) -> tuple[list[float], Table]:
    """Nats of each record, and their derivative by the factor of each module, where all factors are `at`.

    One record at a time: a factor is then one number whatever the shape that a module works in, and what is kept for
    the way back is that of the longest record.
    """
    nats, table = [], []
    for done, item in enumerate(items, 1):
        factors = torch.full((len(layers),), at, requires_grad=True)
        with _factored(layers, factors, back=at != 1), _fixed_order():
            value = record_nats(forward(model, [item.ids])[0], item)
            (by_factor,) = torch.autograd.grad(value, factors)
        nats.append(float(value.detach()))
        table.append(by_factor.tolist())
        told(done)
    return nats, table


@contextmanager
def _factored(layers: dict[str, Any], factors: torch.Tensor, *, back: bool) -> Iterator[None]:
    """What a module adds is what it gives less what the layer below it gives: so for every type that wraps layers.

    back: whether a way leads back through what is added. Where a factor is 1 nothing is taken away, so that none needs
    to, and outputs stay equal to the bit.
    """

    def hook(number: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: torch.Tensor) -> torch.Tensor:
        below = layer.base_layer if hasattr(layer, "base_layer") else layer.original_module
        with torch.set_grad_enabled(back):
            added = out - below(*args, **{name: value for name, value in kwargs.items() if name not in _OF_PEFT})
        changed: torch.Tensor = out + ((factors[number].to(added.device) - 1) * added.float()).to(out.dtype)
        return changed

    handles = [
        layer.register_forward_hook(partial(hook, number), with_kwargs=True)
        for number, layer in enumerate(layers.values())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: Any) -> dict[str, Any]:
    """Modules that the adapter wraps. Attention that is one module of torch gives more than one tensor: left out."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    return {
        name: module
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, ModulesToSaveWrapper)
        or (isinstance(module, BaseTunerLayer) and not isinstance(module.get_base_layer(), torch.nn.MultiheadAttention))
    }


def _spread(records: list[Pair]) -> list[Pair]:
    """Some records of all sets, evenly spaced."""
    count = min(max(len(records) // _PART, _FEW), _MANY, len(records))
    return [records[number * len(records) // count] for number in range(count)]
