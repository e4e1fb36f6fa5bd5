"""DEFT: W + Q (s R - P^T W): a subspace of W is taken out and replaced, or only taken out (para). Q = P = the
orthonormal columns of deft_P, or Q = deft_P and P = its positive part. Source: peft 0.21.2 `DeftLinear._project`,
`_delta_from_factor`; s is alpha / r, 1 without alpha."""

from __future__ import annotations

from collections.abc import Sequence

from lora_kernels.merging.match.target import changed, needed, number, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    method = view.config.raw.get("decomposition_method", "qr")
    removes = view.config.raw.get("para") is True
    for group in groups:
        (p,) = needed(group, "deft_P")
        to = target(view, group, "linear", conv1d=True)
        rank = min(view.config.r or 0, to.out)
        if method not in ("qr", "relu"):
            raise rejected(f"adapter_config.json has decomposition_method = {str(method)[:40]!r} for {p.name}", p)
        factors = {"P": shaped(p, to.out, rank)}
        if not removes:
            (r,) = needed(group, "deft_R")
            factors["R"] = shaped(r, rank, to.in_)
        alpha = number(view, p, "alpha", 0) if view.config.raw.get("alpha") else 0
        how = {"method": method, "inject": alpha / rank if alpha else 1.0, "transposed": to.transposed}
        found.append(changed(view, to, "deft", factors, **how))
    return found
