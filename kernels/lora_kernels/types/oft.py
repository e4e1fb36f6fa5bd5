"""OFT: W R^T, R block-diagonal, a Cayley transform of skew-symmetric blocks; on embeddings W R.

Source: peft 0.21.2 `OFTRotationModule.get_weight`, `oft.Linear.merge`, `oft.Conv2d.merge`, `oft.Embedding.merge`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.tensors import TensorEntry
from lora_kernels.checkpoint.records import Factor
from lora_kernels.types.forms.rotations import Rotate, Rotation, cayley, neumann, project, skew_blocks
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import Target, change, target
from lora_kernels.types.matching.view import View, factor, rejected, shape, unsupported
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, UpdateSpec

_EMBEDDING = "oft_embedding_R.weight"
# Defaults of PEFT's OFTConfig.
_TERMS = 5
_EPS = 6e-5


class BlockRotations(UpdateSpec, frozen=True, tag="oft"):
    """W times block-diagonal rotations.

    Args:
        r: (blocks, b (b - 1) / 2), the upper triangles of skew-symmetric blocks.
        size: b.
        terms: number of terms of the Neumann series for the inverse; None for the exact inverse.
        eps: of COFT; None without it.
        inverse: Q^T instead of Q.
    """

    r: Factor
    size: int
    terms: int | None = None
    eps: float | None = None
    inverse: bool = False

    def load(self, inputs: Inputs) -> Rotate:
        skew = skew_blocks(inputs.reader.load(self.r), self.size)
        if self.eps is not None:
            skew = project(skew, self.eps)
        rotations = cayley(skew) if self.terms is None else neumann(skew, self.terms)
        if self.inverse:
            rotations = rotations.transpose(0, 2, 1)
        return Rotate([Rotation(rotations)])


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        if "oft_r" in group.tensors:
            unsupported("OFT as PEFT stored it before version 0.16 (oft_r)", group.path)
        embedding = _EMBEDDING in group.tensors
        entry = group.tensors[_EMBEDDING] if embedding else group.first
        to = target(view, group, *(("embedding",) if embedding else ("linear", "conv")))
        found.append(change(view, to, _rotations(view, to, entry, inverse=embedding)))
    return found


def _rotations(view: View, to: Target, entry: TensorEntry, *, inverse: bool) -> BlockRotations:
    """The update of an entry, whose rows of b (b - 1) / 2 numbers are blocks of size b."""
    raw = view.config.raw
    if len(entry.shape) != 2:
        raise rejected(f"{entry.name} has the shape {shape(entry)}; expected blocks x numbers", entry)
    count, numbers = entry.shape
    size = (1 + math.isqrt(1 + 8 * numbers)) // 2
    shared = raw.get("block_share") is True
    blocks = to.in_ // size
    if size * (size - 1) // 2 != numbers or size * blocks != to.in_ or count != (1 if shared else blocks):
        raise rejected(
            f"{entry.name} has the shape {shape(entry)}, which does not match "
            f"{'one shared block' if shared else 'blocks'} for the {to.in_} inputs of {to.path}",
            entry,
        )
    series = raw.get("use_cayley_neumann") is not False
    if series and _before_series_changed(view.config.peft_version):
        unsupported(
            "OFT with use_cayley_neumann of PEFT before 0.18",
            to.path,
            "its series was different, and PEFT warns of it",
        )
    terms, eps = raw.get("num_cayley_neumann_terms", _TERMS), raw.get("eps", _EPS)
    if type(terms) is not int or not 0 <= terms <= 100 or type(eps) not in (int, float):
        raise rejected(f"adapter_config.json has num_cayley_neumann_terms = {terms!r:.40}, eps = {eps!r:.40}", entry)
    return BlockRotations(
        r=factor(entry),
        size=size,
        terms=terms if series else None,
        eps=float(eps) if raw.get("coft") is True else None,
        inverse=inverse,
    )


def _before_series_changed(version: str | None) -> bool:
    """Whether the adapter is from PEFT before 0.18, which changed the series and first wrote its version to configs."""
    major, _, rest = (version or "0.0").partition("@")[0].partition(".")
    minor = rest.partition(".")[0]
    return not (major.isdecimal() and minor.isdecimal() and (int(major), int(minor)) >= (0, 18))


ROOM = Room(
    match,
    updates=(BlockRotations,),
    page=Page(
        "OFT",
        "changes: W Rᵀ, R block-diagonal: (I − S)(I + S)⁻¹, or its Neumann series of num_cayley_neumann_terms; COFT, "
        "block_share. On embeddings W R",
        "row",
        "linear, conv, embedding",
        "`OFTRotationModule.get_weight`",
    ),
)
