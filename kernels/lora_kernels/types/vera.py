"""VERA: W + diag(b) B diag(d) A, where all modules share A and B, cut to each module's size; for PVERA the mean: the
first half of d and of A. Source: peft 0.21.2 `vera.Linear.get_delta_weight`, `VeraModel.
_init_vera_A_vera_B` and the same of PVeRA.

Without save_projection the file has no A and B: they are drawn from torch's generator, by projection_prng_key, in the
size of the largest adapted module. PEFT then rounds them to the dtype of the base's weights (`BaseTunerLayer.
_move_adapter_to_device_of_base_layer`), which is taken from the checkpoint here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.errors import RegistryError
from lora_contract.tensors import TensorEntry
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.late import np
from lora_kernels.types.forms.low_rank import LowRankProduct, cut, product
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import Target, change, needed, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected, shape
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32
    from lora_kernels.types.forms.products import LowRankAddition

# Elements, 512 MiB in float32; rank 1024 on the largest models needs a quarter of it.
_MAX_DRAWN: Final = 1 << 27


class DrawnProduct(UpdateSpec, frozen=True, tag="drawn-low-rank"):
    """diag(rows) B diag(rank) A, with projections drawn from torch's generator by `seed`.

    Args:
        a, b: shapes of the projections.
        dtype: to which they are rounded.
        cut: (out, r, in), the part that the module uses.
    """

    rows: Factor
    rank: Factor
    scale: float
    seed: int
    a: tuple[int, int]
    b: tuple[int, int]
    dtype: str
    cut: tuple[int, int, int]
    transposed: bool = False

    def load(self, inputs: Inputs) -> LowRankAddition:
        a, b = _drawn(self.seed, self.dtype, self.a, self.b)
        a, b = cut(a, b, self.cut)
        a = a * inputs.reader.load(self.rank).reshape(-1, 1)[: a.shape[0]]
        b = b * inputs.reader.load(self.rows).reshape(-1, 1)
        return product(a, b, self.scale, transposed=self.transposed)


# A cache of one pair, which all modules of an adapter share.
@lru_cache(maxsize=1)
def _drawn(seed: int, dtype: str, *shapes: tuple[int, int]) -> list[F32]:
    """Uniform random matrices within sqrt(6 / columns), drawn in order (peft 0.21.2 `vera.model._kaiming_init`)."""
    from lora_kernels.numeric.dtypes import decode, encode, storage
    from lora_kernels.numeric.torch_generator import TorchGenerator

    generator = TorchGenerator(seed)
    bounds = [math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(columns)) for _, columns in shapes]
    drawn = [generator.uniform(shape, -bound, bound) for shape, bound in zip(shapes, bounds, strict=True)]
    return [decode(encode(part, dtype, np.empty(part.shape, storage(dtype))), dtype, part) for part in drawn]


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    prefix = view.config.peft_type.lower()
    rank = view.config.r or 0
    halves = 2 if prefix == "pvera" else 1
    targets = [target(view, group, "linear", conv1d=True) for group in groups]
    for entry in view.shared.values():
        if len(entry.shape) != 2:
            raise rejected(f"{entry.name} has the shape {shape(entry)}; expected a matrix", entry)
    found = []
    for group, to in zip(groups, targets, strict=True):
        b, d = needed(group, f"{prefix}_lambda_b", f"{prefix}_lambda_d")
        shaped(b, to.out)
        shaped(d, halves * rank)
        sizes = (to.out, rank, to.in_)
        update: UpdateSpec
        if view.shared:
            first, second = _shared(view, prefix, to)
            update = LowRankProduct(
                a=factor(first),
                b=factor(second),
                scale=view.scaled(),
                rank=factor(d),
                rows=factor(b),
                cut=sizes,
                transposed=to.transposed,
            )
        else:
            size = (max(known.out for known in targets), max(known.in_ for known in targets))
            update = DrawnProduct(
                rows=factor(b),
                rank=factor(d),
                scale=view.scaled(),
                seed=_seed(view, to),
                a=(halves * rank, size[1]),
                b=(size[0], rank),
                dtype=to.weight.dtype,
                cut=sizes,
                transposed=to.transposed,
            )
            _check_size(to, update.a, update.b)
        found.append(change(view, to, update))
    return found


def _shared(view: View, prefix: str, to: Target) -> tuple[TensorEntry, TensorEntry]:
    rank = (view.config.r or 0) * (2 if prefix == "pvera" else 1)
    for name, other in ((f"{prefix}_A", f"{prefix}_B"), (f"{prefix}_B", f"{prefix}_A")):
        if name not in view.shared:
            entry = view.shared[other]
            raise rejected(f"{entry.name} has no matching {name}; half a projection cannot be merged", entry)
    a, b = view.shared[f"{prefix}_A"], view.shared[f"{prefix}_B"]
    if a.shape[1] < to.in_ or b.shape[0] < to.out:
        small = a if a.shape[1] < to.in_ else b
        raise rejected(
            f"{small.name} has the shape {shape(small)}; {to.path} needs {to.out} rows of B and {to.in_} columns of A",
            small,
        )
    shaped(a, rank, a.shape[1])
    shaped(b, b.shape[0], view.config.r or 0)
    return a, b


def _check_size(to: Target, *shapes: tuple[int, int]) -> None:
    """Limit the size of drawn projections, which the file does not limit: a few bytes of config could claim all
    memory."""
    elements = sum(height * width for height, width in shapes)
    if elements > _MAX_DRAWN:
        raise RegistryError(
            "unsupported",
            f"The projections shared by {to.path} and others have {elements} elements, which are not in the file; at "
            f"most {_MAX_DRAWN} are drawn by a seed.",
            hint="Save the adapter again with save_projection=True.",
            module=to.path,
        )


def _seed(view: View, to: Target) -> int:
    seed = view.config.raw.get("projection_prng_key")
    if view.config.raw.get("save_projection") is True or type(seed) is not int or seed < 0:
        raise RegistryError(
            "rejected",
            f"The adapter has no {view.config.peft_type.lower()}_A and _B, the projections that {to.path} needs, and "
            "its config has no seed to draw them.",
            hint="Save the adapter again with save_projection=True.",
            module=to.path,
        )
    return seed


ROOM = Room(
    match,
    updates=(DrawnProduct,),
    page=Page(
        "VeRA, PVeRA",
        "adds diag(λb) B diag(λd) A, A and B shared and cut to size; PVeRA: the mean, the first half of A and λd",
        "element",
        "linear, Conv1D",
        "`get_delta_weight`, `_init_vera_A_vera_B`",
    ),
)
