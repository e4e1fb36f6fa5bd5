"""Types that add numbers at few places. SHIRA and SUPERTUNING store the places; WAVEFT draws them by a seed.

Source: peft 0.21.2 `shira.Linear.get_delta_weight`, `supertuning.Linear.merge`, `WaveFTLayer.get_delta_weight`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.match.fourierft import check_count, seed
from lora_kernels.merging.match.target import Target, added, needed, number, places, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected, unsupported


def match_shira(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    for group in groups:
        values, indices = needed(group, "shira_weight", "shira_indices")
        to = target(view, group, "linear")
        shaped(indices, 2, *values.shape[:1])
        shaped(values, *values.shape[:1])
        found.append(added(view, to, "scatter", {"values": values, "places": places(indices)}, shape=[to.out, to.in_]))
    return found


def match_supertuning(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    for group in groups:
        to = target(view, group, "linear")
        (values,) = needed(group, "supertuning_values")
        indices = group.tensors.get("supertuning_indices")
        if indices is None:
            raise rejected(
                f"{values.name} has no supertuning_indices beside it; without them its places are known to the base "
                "that it was trained on alone. Save it again with save_precomputed_indices=True",
                values,
            )
        shaped(values, *values.shape[:1])
        shaped(indices, *values.shape)
        found.append(added(view, to, "scatter", {"values": values, "places": places(indices)}, shape=[to.out, to.in_]))
        if any(suffix.startswith("supertuning_lora_") for suffix in group.tensors):
            found.append(_pair(view, group, to))
    return found


def _pair(view: View, group: Group, to: Target) -> tuple[str, Delta]:
    """The low-rank part of the hybrid, "Supra"."""
    a, b = needed(group, "supertuning_lora_A.weight", "supertuning_lora_B.weight")
    rank = view.config.r or 0
    if not rank:
        raise rejected(f"{a.name} is there, but adapter_config.json gives no r", a)
    alpha = number(view, a, "lora_alpha", 8)
    return added(view, to, "low-rank", {"A": shaped(a, rank, to.in_), "B": shaped(b, to.out, rank)}, scale=alpha / rank)


def match_waveft(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    wavelet = view.config.raw.get("wavelet_family", "db1")
    inverse = view.config.raw.get("use_idwt", True) is not False
    for group in groups:
        (spectrum,) = needed(group, "waveft_spectrum")
        to = target(view, group, "linear", conv1d=True)
        if inverse and wavelet not in ("db1", "haar"):
            unsupported(f"WAVEFT with the wavelet {str(wavelet)[:40]}", to.path)
        check_count(spectrum, to.out * to.in_)
        found.append(
            added(
                view,
                to,
                "wavelet",
                {"spectrum": spectrum},
                scale=number(view, spectrum, "scaling", 25.0),
                seed=seed(view, spectrum),
                size=[to.out, to.in_],
                haar=inverse,
                transposed=to.transposed,
            )
        )
    return found
