"""IA3: W * l by row, and the bias with it; by column for feedforward_modules.

Source: peft 0.21.2 `ia3.Linear.merge`, `_ConvNd._get_ia3_scaling_for_weight`, `_check_target_module_feedforward`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lora_contract.adapter.patterns import names_module
from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.tensors import TensorEntry
from lora_kernels.types.forms.scale import Scaled
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import Target, bias_change, change, needed, target
from lora_kernels.types.matching.view import View, factor, rejected, shape
from lora_kernels.types.room import Page, Room


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found: Matches = []
    feedforward = _feedforward(view)
    for group in groups:
        (scale,) = needed(group, "ia3_l")
        to = target(view, group, "linear", "conv", conv1d=True)
        of_inputs = feedforward(group.path)
        group_count = _check(to, scale, of_inputs=of_inputs)
        vector = factor(scale)
        update = Scaled(
            vector,
            axis="columns" if of_inputs != to.transposed else "rows",
            repeat=to.kernel if of_inputs else 1,
            groups=group_count,
            rows=to.out if group_count > 1 else 0,
        )
        found.append(change(view, to, update))
        if not of_inputs and to.bias is not None:
            found.append(bias_change(view, to, to.bias, Scaled(vector, axis="columns")))
    return found


def _feedforward(view: View) -> Callable[[str], bool]:
    """PEFT's match of feedforward_modules: by the end of the path, even within a segment."""
    names = view.config.feedforward_modules
    if names is None or isinstance(names, str):
        return names_module(names)
    ends = tuple(names)
    return lambda path: path.endswith(ends)


def _check(to: Target, scale: TensorEntry, *, of_inputs: bool) -> int:
    """The number of groups of a convolution whose inputs are scaled; otherwise 1."""
    dimensions = len(to.weight.shape)
    if dimensions == 2:
        expected: tuple[int, ...] = (1, to.in_) if of_inputs else (to.out, 1)
        if scale.shape == expected:
            return 1
    else:
        size = to.in_ // to.kernel if of_inputs else to.out
        count = scale.shape[1] if len(scale.shape) == dimensions else 0
        expected = (1, size, *(1 for _ in range(dimensions - 2)))
        groups = count // size if of_inputs and size and not count % size else 1
        if groups and to.out % groups == 0 and scale.shape == (1, size * groups, *expected[2:]):
            return groups
    which = "inputs, as a feedforward module," if of_inputs else "outputs"
    raise rejected(
        f"{scale.name} has the shape {shape(scale)}; scaling the {which} of {to.path} needs "
        f"{' x '.join(map(str, expected))}",
        scale,
    )


ROOM = Room(
    match,
    page=Page(
        "IA3",
        "changes: rows and b times l; of feedforward_modules the columns, b stays",
        "element",
        "linear, Conv1D, conv (groups too)",
        "`ia3.Linear.merge`, `_ConvNd.merge`",
    ),
)
