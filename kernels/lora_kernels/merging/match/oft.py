"""OFT: W R^T, R block-diagonal, a Cayley transform of skew-symmetric blocks; on embeddings W R.

Source: peft 0.21.2 `OFTRotationModule.get_weight`, `oft.Linear.merge`, `oft.Conv2d.merge`, `oft.Embedding.merge`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lora_contract.tensors import TensorEntry
from lora_kernels.merging.match.target import Target, changed, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected, shape, unsupported

_EMBEDDING = "oft_embedding_R.weight"
# Defaults of PEFT's OFTConfig.
_TERMS = 5
_EPS = 6e-5


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    for group in groups:
        if "oft_r" in group.tensors:
            unsupported("OFT as PEFT stored it before version 0.16 (oft_r)", group.module)
        embedding = _EMBEDDING in group.tensors
        entry = group.tensors[_EMBEDDING] if embedding else group.first
        to = target(view, group, *(("embedding",) if embedding else ("linear", "conv")))
        found.append(changed(view, to, "oft", {"R": entry}, inverse=embedding, **_rotation(view, to, entry)))
    return found


def _rotation(view: View, to: Target, entry: TensorEntry) -> dict[str, Any]:
    """Size of the blocks, and how R is made of them. b (b - 1) / 2 numbers are a block of size b."""
    raw = view.config.raw
    if len(entry.shape) != 2:
        raise rejected(f"{entry.name} has the shape {shape(entry)}; expected blocks x numbers", entry)
    count, numbers = entry.shape
    size = (1 + math.isqrt(1 + 8 * numbers)) // 2
    shared = raw.get("block_share") is True
    blocks = to.in_ // size
    if size * (size - 1) // 2 != numbers or size * blocks != to.in_ or count != (1 if shared else blocks):
        raise rejected(
            f"{entry.name} has the shape {shape(entry)}, which makes {'one shared block' if shared else 'blocks'} of "
            f"no size that divides the {to.in_} inputs of {to.path} into as many",
            entry,
        )
    neumann = raw.get("use_cayley_neumann") is not False
    if neumann and _before_series_changed(view.config.peft_version):
        unsupported(
            "OFT with use_cayley_neumann of PEFT before 0.18",
            to.path,
            "its series was another one, of which PEFT warns",
        )
    terms, eps = raw.get("num_cayley_neumann_terms", _TERMS), raw.get("eps", _EPS)
    if type(terms) is not int or not 0 <= terms <= 100 or type(eps) not in (int, float):
        raise rejected(f"adapter_config.json has num_cayley_neumann_terms = {terms!r:.40}, eps = {eps!r:.40}", entry)
    return {
        "size": size,
        "terms": terms if neumann else None,
        "eps": float(eps) if raw.get("coft") is True else None,
    }


def _before_series_changed(version: str | None) -> bool:
    """PEFT has named its version in configs since 0.18, where it changed the series."""
    major, _, rest = (version or "0.0").partition("@")[0].partition(".")
    minor = rest.partition(".")[0]
    return not (major.isdecimal() and minor.isdecimal() and (int(major), int(minor)) >= (0, 18))
