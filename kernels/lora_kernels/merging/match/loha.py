"""LOHA: W + (alpha / r) (w1_a w1_b) * (w2_a w2_b), elementwise. Source: peft 0.21.2 `LoHaLayer.get_delta_weight`.

With use_effective_conv2d a convolution's halves are Tucker products, sum_ij t[i,j,k] w_a[i,out] w_b[j,in]. Kernels of
one dimension are stored with a second one of size 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.tensors import TensorEntry
from lora_kernels.merging.match.target import Target, added, needed, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected

_PLAIN = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_TUCKER = ("hada_t1", "hada_t2")


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    for group in groups:
        to = target(view, group, "linear", "conv")
        factors = dict(zip(("a1", "b1", "a2", "b2"), needed(group, *_PLAIN), strict=True))
        if any(suffix in group.tensors for suffix in _TUCKER):
            factors |= zip(("t1", "t2"), needed(group, *_TUCKER), strict=True)
        _check(view, to, factors)
        found.append(added(view, to, "hadamard", factors, scale=view.scale(group.module).scale))
    return found


def _check(view: View, to: Target, factors: dict[str, TensorEntry]) -> None:
    rank = view.scale(to.path).r
    for half in "12":
        if "t1" not in factors:
            shaped(factors[f"a{half}"], to.out, rank)
            shaped(factors[f"b{half}"], rank, to.in_)
            continue
        if to.kernel == 1 and len(to.weight.shape) == 2:
            raise rejected(f"{factors['t1'].name} belongs to a convolution, but {to.path} is none", factors["t1"])
        shaped(factors[f"a{half}"], rank, to.out)
        shaped(factors[f"b{half}"], rank, to.in_ // to.kernel)
        shaped(factors[f"t{half}"], rank, rank, *tucker_kernel(to))


def tucker_kernel(to: Target) -> tuple[int, ...]:
    """Kernel sizes as PEFT stores them: at least two."""
    sizes = to.weight.shape[2:]
    return (*sizes, 1) if len(sizes) == 1 else tuple(sizes)
