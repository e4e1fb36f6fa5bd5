"""Tell the format of an adapter by its files and its config, and which of its files are taken. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, Literal

import msgspec

from lora_contract.adapter.files import is_adapter_file
from lora_contract.adapter.report import CONFIG, WEIGHTS
from lora_contract.byproducts import is_of_run
from lora_contract.errors import RegistryError
from lora_contract.pipelines import LORA_FILE
from lora_reg.importing.formats import adapterhub, mlx

Format = Literal["peft", "mlx-lm", "adapterhub", "diffusion"]

PICKLES: Final = (".bin", ".pt", ".pth")
_PEFT_WEIGHTS: Final = (WEIGHTS, "adapter_model.bin", "adapter_model.pt")
_MLX_WEIGHTS: Final = "adapters.safetensors"
_ADAPTERHUB_WEIGHTS: Final = ("adapter.safetensors", "pytorch_adapter.bin")
_DIFFUSERS_WEIGHTS: Final = (LORA_FILE, "pytorch_lora_weights.bin")


class Recognised(msgspec.Struct, frozen=True):
    """The format of an adapter. weights: the file of its tensors. beside: further files that its version gets."""

    format: Format
    weights: str
    beside: tuple[str, ...]

    @property
    def pickled(self) -> bool:
        return self.weights.endswith(PICKLES)


class NotAnAdapter(RegistryError):
    """What lies there is something else: a model, a data set, nothing."""

    def __init__(self, why: str) -> None:
        super().__init__("rejected", f"It is no adapter: {why}.", hint="Name an adapter, or what holds adapters.")

    def __reduce__(self) -> tuple[Any, ...]:
        return (NotAnAdapter, (self.detail,))


def recognise(paths: Collection[str], config: Mapping[str, Any] | None) -> Recognised:
    """Recognise a format.

    Args:
        paths: of all files, relative to the adapter's folder.
        config: adapter_config.json; None if there is none.

    Raises NotAnAdapter, or RegistryError `rejected` for an adapter of an unknown format.
    """
    if config is None:
        return Recognised("diffusion", _of_diffusion(paths), _beside(paths))
    if "peft_type" in config:
        return Recognised("peft", _first(_PEFT_WEIGHTS, paths), _beside(paths))
    if mlx.is_mlx(config):
        return Recognised("mlx-lm", _first((_MLX_WEIGHTS,), paths), _beside(paths))
    if adapterhub.is_adapterhub(config):
        return Recognised("adapterhub", _first(_ADAPTERHUB_WEIGHTS, paths), _beside(paths))
    raise RegistryError(
        "rejected",
        f"{CONFIG} is of no known format: it has neither peft_type nor the keys of mlx-lm or AdapterHub.",
        hint="Save the adapter with PEFT's save_pretrained.",
    )


def _of_diffusion(paths: Collection[str]) -> str:
    named = next((name for name in _DIFFUSERS_WEIGHTS if name in paths), None)
    if named is not None:
        return named
    files = [path for path in paths if path.endswith(".safetensors") and "/" not in path]
    if "model_index.json" in paths or "config.json" in paths:
        raise NotAnAdapter(f"it has no {CONFIG}, and holds a model")
    if len(files) != 1:
        what = "no safetensors file" if not files else f"{len(files)} safetensors files"
        raise NotAnAdapter(f"it has no {CONFIG}, and {what}")
    return files[0]


def _first(names: Collection[str], paths: Collection[str]) -> str:
    found = next((name for name in names if name in paths), None)
    if found is None:
        raise RegistryError(
            "rejected",
            f"There is {CONFIG} without weights; expected {' or '.join(names)}.",
            hint="Upload the weights to the source, or remove the config there.",
        )
    return found


def _beside(paths: Collection[str]) -> tuple[str, ...]:
    """Tokenizer, documentation and the rest of what a version may hold. Everything else is left out."""
    return tuple(
        sorted(
            path for path in paths if path not in (CONFIG, WEIGHTS) and is_adapter_file(path) and not is_of_run(path)
        )
    )
