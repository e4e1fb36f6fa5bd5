"""DELORA: W + B diag(lambda / (r |A_i| |B^i|)) A diag(w_norm), lengths at least 1e-4.

w_norm, the length of the base's columns when training began, is in the file. Source: peft 0.21.2
`DeloraLayer._compute_delta`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_kernels.merging.match.target import added, needed, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    for group in groups:
        a, b, strength, norms = needed(group, "delora_A", "delora_B", "delora_lambda", "delora_w_norm")
        to = target(view, group, "linear")
        rank = view.scale(group.module).r
        factors = {
            "A": shaped(a, rank, to.in_),
            "B": shaped(b, to.out, rank),
            "lambda": shaped(strength, 1),
            "columns": shaped(norms, to.in_),
        }
        found.append(added(view, to, "normed-low-rank", factors))
    return found
