"""Places that a seed names: FourierFT, WaveFT."""

from __future__ import annotations

from lora_contract.tensors import TensorEntry
from lora_kernels.types.matching.view import View, rejected, shape


def check_count(spectrum: TensorEntry, elements: int) -> None:
    """Raises RegistryError `rejected` unless there are at most as many numbers as elements, and at least one."""
    if len(spectrum.shape) != 1 or not 0 < spectrum.shape[0] <= elements:
        raise rejected(
            f"{spectrum.name} has the shape {shape(spectrum)}; expected at most {elements} numbers", spectrum
        )


def seed(view: View, entry: TensorEntry) -> int:
    """The seed that draws the places of a tensor. Raises RegistryError `rejected`."""
    value = view.config.raw.get("random_loc_seed", 777)
    if type(value) is not int or value < 0:
        raise rejected(
            f"adapter_config.json has random_loc_seed = {str(value)[:40]} for the places of {entry.name}", entry
        )
    return value
