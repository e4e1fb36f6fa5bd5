"""Contribution of each module to the loss: its gradient with respect to a gate, and its ablation.

Each module's contribution to its layer is scaled by a gate α. One forward+backward pass gives the derivatives of the
loss with respect to all gates.

At α = 1, a positive gradient means that the loss would fall if the module were scaled down slightly. Training ends with
a gradient of about 0, or below if it ended early. A module with a wrong sign or scale is alone in having a gradient, of
about the loss that it costs; all modules have one if the whole update is too strong, or was trained for too long on too
little data.

At α = 1/2, the gradients sum to about the loss of the adapter minus that of the base, so the negated gradient is the
module's gain. A module whose factors were swapped, or that was trained on another base, has a small gradient and no
gain.

A gradient at one point may have the wrong sign for a module that helps only beside the others at full scale, and a
slightly overfitted module has a positive gradient but helps nevertheless. Modules without a gain or with a positive
gradient are therefore ablated, and the rise of the loss is measured.

No other version is needed for comparison.
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

from lora_contract.statistics import LEVEL, MIN_RECORDS, Interval, paired_difference
from lora_kernels.validating.losses import Encoded, forward, losses, record_nats

# A forward+backward pass costs about four forward passes, and there are two: on a quarter of the records they cost
# about as much as the losses of base and adapter on all of them.
_FEWEST, _MOST, _FRACTION = 16, 64, 4
# Nats per token, and share of the gain: the larger one is the smallest change that counts.
LEAST: Final = 0.005
SHARE: Final = 0.01
# Only the plain attention kernel sums in a fixed order on every device.
_fixed_order = partial(sdpa_kernel, SDPBackend.MATH)
# Maximum number of modules that are ablated one at a time.
_MAX_ABLATED = 8
# Arguments that PEFT's layers take and do not pass to the layer below.
_PEFT_ARGUMENTS: Final = frozenset({"adapter_names", "alora_offsets"})

Progress = Callable[[int, int], None]
Pair = tuple[Encoded, float]
"""A record, and its nats on the base."""

Table = list[list[float]]
"""(records, modules)"""


class Contributions:
    """Contribution of each module, by its name in the base, in nats per token.

    Attributes:
        gradient: derivative of the loss at α = 1.
        gain_at_half: negated derivative of the loss at α = 1/2.
        inactive: modules that change nothing.
        suspects: other modules without a positive gain.
        gain: loss of the base minus that of the adapter, on the same records.
        least: the smallest change that counts.
        ablation: rise of the loss, by the modules ablated.
    """

    def __init__(self, names: Sequence[str], gain: float, at_one: Table, at_half: Table, tokens: list[int]) -> None:
        self.gain = gain
        self.least = max(LEAST, SHARE * gain)
        self._tokens = tokens
        self._at_one = dict(zip(names, zip(*at_one, strict=True), strict=True))
        half = dict(zip(names, zip(*at_half, strict=True), strict=True))
        self.gradient = {name: self._interval(column) for name, column in self._at_one.items()}
        self.gain_at_half = {name: self._interval([-value for value in column]) for name, column in half.items()}
        self.inactive = {name for name in names if not any(self._at_one[name]) and not any(half[name])}
        active = [name for name in names if name not in self.inactive]
        self.suspects = tuple(name for name in active if self.gain_at_half[name].mean <= 0)
        self.ablation: dict[tuple[str, ...], Interval] = {}

    def joint_gradient(self, names: Sequence[str]) -> Interval:
        """The gradient with respect to one gate for all of these modules."""
        rows = zip(*(self._at_one[name] for name in names), strict=True)
        return self._interval([sum(row) for row in rows] or [0.0] * len(self._tokens))

    def ablate(self, names: tuple[str, ...], rise: Sequence[float]) -> None:
        """Add an ablation. rise: nats of each record without these modules, minus those with all."""
        self.ablation[names] = self._interval(rise)

    def _interval(self, values: Sequence[float]) -> Interval:
        found = paired_difference(values, [0.0] * len(values), self._tokens, level=LEVEL)
        assert found is not None  # `measure` requires enough records
        return found


def measure(model: Any, records: Sequence[tuple[Encoded, float | None]], progress: Progress) -> Contributions | None:
    """Measure the contributions of a PEFT model's modules.

    Args:
        model: of PEFT.
        records: with their nats on the base.
        progress: called with passes done and passes in total.

    Returns:
        None if there is nothing to measure: fewer than MIN_RECORDS records, values that are not finite, or a type that
        wraps no module, as prompts and prefixes do.
    """
    chosen = _spread([(item, base) for item, base in records if base is not None and item.tokens])
    layers, items = _layers(model), [item for item, _ in chosen]
    if not layers or len(chosen) < MIN_RECORDS:
        return None
    model.requires_grad_(False)
    count = len(items)
    nats, at_one = _gradients(model, layers, items, 1.0, lambda done: progress(done, 2 * count))
    _, at_half = _gradients(model, layers, items, 0.5, lambda done: progress(count + done, 2 * count))
    if not all(map(math.isfinite, chain(nats, *at_one, *at_half))):
        return None
    tokens = [item.tokens for item in items]
    gain = (sum(base for _, base in chosen) - sum(nats)) / sum(tokens)
    found = Contributions(list(layers), gain, at_one, at_half, tokens)
    for names in _to_ablate(found):
        without = _losses_without(model, {name: layers[name] for name in names}, items)
        rise = [value - full for value, full in zip(without, nats, strict=True) if value is not None]
        if len(rise) == len(items):
            found.ablate(names, rise)
    return found


def _to_ablate(found: Contributions) -> list[tuple[str, ...]]:
    """All suspects together; then, one at a time, the worst of them and of the modules with a positive gradient. Empty
    if the adapter is worse than its base: it is refused for its losses."""
    if found.gain <= 0:
        return []
    doubtful = {*found.suspects, *(name for name, gradient in found.gradient.items() if gradient.low >= found.least)}
    worst = sorted(doubtful, key=lambda name: (found.gain_at_half[name].mean - found.gradient[name].mean, name))
    singles = [(name,) for name in worst[:_MAX_ABLATED]]
    return list(dict.fromkeys(names for names in [found.suspects, *singles] if names))


def _losses_without(model: Any, ablated: dict[str, Any], items: Sequence[Encoded]) -> list[float | None]:
    # The other modules have no gate: at α = 1 it would change no bit and double the products.
    with _gated(ablated, torch.zeros(len(ablated)), differentiate=False), _fixed_order():
        return losses(model, items, lambda _done: None)


def _gradients(
    model: Any, layers: dict[str, Any], items: Sequence[Encoded], alpha: float, progress: Callable[[int], None]
) -> tuple[list[float], Table]:
    """Nats of each record, and their derivative with respect to the gate of each module, with all gates at `alpha`.

    One record at a time: a gate is then a scalar for modules of any shape, and activations are kept for one record.
    """
    nats, table = [], []
    for done, item in enumerate(items, 1):
        gates = torch.full((len(layers),), alpha, requires_grad=True)
        with _gated(layers, gates, differentiate=alpha != 1), _fixed_order():
            value = record_nats(forward(model, [item.ids])[0], item)
            (gradient,) = torch.autograd.grad(value, gates)
        nats.append(float(value.detach()))
        table.append(gradient.tolist())
        progress(done)
    return nats, table


@contextmanager
def _gated(layers: dict[str, Any], gates: torch.Tensor, *, differentiate: bool) -> Iterator[None]:
    """Scale the contribution of each layer by its gate. For every type that wraps layers, a contribution is the output
    minus that of the layer below.

    differentiate: whether gradients pass through the contributions. At α = 1 that is not needed, since their factor
    α - 1 is 0, and outputs stay equal bit by bit.
    """

    kept: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}

    def keep(index: int, _below: Any, args: tuple[Any, ...], out: torch.Tensor) -> None:
        if not out.is_inference():  # such a tensor does not tell whether it was changed
            kept[index] = args[0], out, out._version

    def hook(index: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: torch.Tensor) -> torch.Tensor:
        given, output, version = kept.pop(index, (None, out, 0))
        # Most types call the layer below with the input that they get. Its output is that of the layer without the
        # adapter then, unless something was added in place.
        fits = given is args[0] and output is not out and output._version == version
        with torch.set_grad_enabled(differentiate):
            added = out - (output if fits else _below(layer)(*args, **_for_below(kwargs)))
        scaled: torch.Tensor = out + ((gates[index].to(added.device) - 1) * added.float()).to(out.dtype)
        return scaled

    handles = [
        handle
        for index, layer in enumerate(layers.values())
        for handle in (
            _below(layer).register_forward_hook(partial(keep, index)),
            layer.register_forward_hook(partial(hook, index), with_kwargs=True),
        )
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _below(layer: Any) -> Any:
    return layer.base_layer if hasattr(layer, "base_layer") else layer.original_module


def _for_below(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in _PEFT_ARGUMENTS}


def _layers(model: Any) -> dict[str, Any]:
    """Modules that the adapter wraps, except torch's MultiheadAttention, which returns more than one tensor."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    return {
        name: module
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, ModulesToSaveWrapper)
        or (isinstance(module, BaseTunerLayer) and not isinstance(module.get_base_layer(), torch.nn.MultiheadAttention))
    }


def _spread(records: list[Pair]) -> list[Pair]:
    """Evenly spaced records of all sets."""
    count = min(max(len(records) // _FRACTION, _FEWEST), _MOST, len(records))
    return [records[index * len(records) // count] for index in range(count)]
