"""FOURIERFT: W + scaling * Re ifft2(S), S zero but for n places that a seed names. Source: peft 0.21.2
`FourierFTLayer.update_layer`, `get_delta_weight`: the first n of `torch.randperm` by random_loc_seed."""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.tensors import TensorEntry
from lora_kernels.merging.match.target import added, needed, number, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected, shape


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    for group in groups:
        (spectrum,) = needed(group, "fourierft_spectrum")
        to = target(view, group, "linear", conv1d=True)
        check_count(spectrum, to.out * to.in_)
        scale = number(view, spectrum, "scaling", 150.0)
        how = {"seed": seed(view, spectrum), "out": to.out, "in": to.in_, "transposed": to.transposed}
        found.append(added(view, to, "fourier", {"spectrum": spectrum}, scale=scale, **how))
    return found


def check_count(spectrum: TensorEntry, elements: int) -> None:
    if len(spectrum.shape) != 1 or not 0 < spectrum.shape[0] <= elements:
        raise rejected(
            f"{spectrum.name} has the shape {shape(spectrum)}; expected at most {elements} numbers", spectrum
        )


def seed(view: View, entry: TensorEntry) -> int:
    value = view.config.raw.get("random_loc_seed", 777)
    if type(value) is not int or value < 0:
        raise rejected(
            f"adapter_config.json has random_loc_seed = {str(value)[:40]} for the places of {entry.name}", entry
        )
    return value
