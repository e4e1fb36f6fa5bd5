"""Positions drawn by a seed: FourierFT, WaveFT."""

from __future__ import annotations

from lora_contract.tensors import TensorEntry
from lora_kernels.types.matching.view import View, rejected, shape


def check_count(spectrum: TensorEntry, elements: int) -> None:
    """Raise RegistryError `rejected` unless the spectrum has 1 to `elements` numbers."""
    if len(spectrum.shape) != 1 or not 0 < spectrum.shape[0] <= elements:
        raise rejected(f"{spectrum.name} has the shape {shape(spectrum)}; expected 1 to {elements} numbers", spectrum)


def seed(view: View, entry: TensorEntry) -> int:
    """The seed of the positions of a tensor. Raises RegistryError `rejected`."""
    value = view.config.raw.get("random_loc_seed", 777)
    if type(value) is not int or value < 0:
        raise rejected(
            f"adapter_config.json has random_loc_seed = {str(value)[:40]} for the positions of {entry.name}", entry
        )
    return value
