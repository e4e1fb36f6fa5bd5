"""PEANUT: W + s N(W^T)^T, N a small network that is applied to each column of W. Source: peft 0.21.2
`peanut.Linear._compute_delta_weight`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.late import np
from lora_kernels.types.forms.wide import times_weight, wide_product
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import change, needed, number, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected, unsupported
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, UpdateSpec

if TYPE_CHECKING:
    import numpy.typing as npt

    from lora_kernels.numeric.dtypes import F64
    from lora_kernels.types.forms.products import WideLowRankAddition

_ACTIVATIONS: Final[Mapping[str, Callable[[F64], npt.NDArray[Any]]]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 0.5 * (1 + np.tanh(0.5 * x)),
    "silu": lambda x: x * 0.5 * (1 + np.tanh(0.5 * x)),
    "swish": lambda x: x * 0.5 * (1 + np.tanh(0.5 * x)),
    "tanh": lambda x: np.tanh(x),  # noqa: PLW0108 numpy is not loaded yet
}


class Network(UpdateSpec, frozen=True, tag="peanut"):
    """a: (r, out). b: (out, r). encoders, decoders: the layers in between, (r, r) each. The update is linear in the
    adapter's weight."""

    a: Factor
    b: Factor
    encoders: tuple[Factor, ...]
    decoders: tuple[Factor, ...]
    activation: str
    scale: float

    def load(self, inputs: Inputs) -> WideLowRankAddition:
        act = _ACTIVATIONS[self.activation]
        hidden = act(times_weight(inputs.wide(self.a), inputs, transposed=False))
        kept = []
        for layer in self.encoders:
            kept.append(hidden)
            hidden = act(inputs.wide(layer) @ hidden)
        for layer, skipped in zip(self.decoders, reversed(kept), strict=True):
            hidden = act(inputs.wide(layer) @ hidden) + skipped
        return wide_product(inputs.wide(self.b), self.scale * hidden, inputs.weight, transposed=False)


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    rank, depth = view.config.r or 0, view.config.raw.get("depth", 0)
    act = view.config.raw.get("act_fn", "relu")
    for group in groups:
        to = target(view, group, "linear")
        if act not in _ACTIVATIONS:
            unsupported(f"PEANUT with the activation {str(act)[:40]}", to.path)
        if type(depth) is not int or not 0 <= depth <= len(group.tensors):
            raise rejected(f"adapter_config.json has depth = {str(depth)[:40]} for {group.first.name}", group.first)
        a, b = needed(group, "peanut_A.weight", "peanut_B.weight")
        shaped(a, rank, to.out)
        shaped(b, to.out, rank)
        encoders, decoders = (
            needed(group, *(f"peanut_{half}s.{index}.weight" for index in range(depth)))
            for half in ("encoder", "decoder")
        )
        for layer in (*encoders, *decoders):
            shaped(layer, rank, rank)
        if len(group.tensors) != 2 + 2 * depth:
            raise rejected(f"{group.first.name}: {to.path} has more layers than depth = {depth}", group.first)
        update = Network(
            a=factor(a),
            b=factor(b),
            encoders=tuple(map(factor, encoders)),
            decoders=tuple(map(factor, decoders)),
            activation=act,
            scale=number(view, a, "scaling", 1.0),
        )
        found.append(change(view, to, update))
    return found


ROOM = Room(
    match,
    updates=(Network,),
    page=Page(
        "PEANuT",
        "adds s N(Wᵀ)ᵀ; relu, tanh, sigmoid, silu, linear",
        "first pass",
        "linear",
        "`peanut.Linear._compute_delta_weight`",
    ),
)
