"""Layouts of base models: one model in a folder, or a pipeline of diffusers with each of its models in a folder below.

A pipeline counts as one module whose children are its components: parameters and modules have the component's name in
front (`unet.down_blocks.0…`). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

LIBRARY: Final = "diffusers"
FILE: Final = "model_index.json"
LORA_FILE: Final = "pytorch_lora_weights.safetensors"
"""What diffusers and its training scripts call a LoRA file."""
COMPONENTS: Final = "_components"
"""Key of a fingerprint's config: the config.json of each component that has weights."""
CLASS: Final = "_class_name"
SUFFIX: Final = ".safetensors"
INDEX_SUFFIX: Final = ".safetensors.index.json"
STEMS: Final = ("model", "diffusion_pytorch_model")
"""Names of weight files: of transformers, of diffusers. Variants (`model.fp16.safetensors`) have others."""
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}\Z")


class Weights(msgspec.Struct, frozen=True):
    """The weights of one model: one file, or an index and its shards. folder: with its '/'; empty for the root."""

    folder: str
    single: str
    index: str

    @property
    def component(self) -> str:
        return self.folder.removesuffix("/")

    @property
    def prefix(self) -> str:
        """What stands before the names of its tensors."""
        return f"{self.component}." if self.folder else ""


def layout(paths: Collection[str]) -> tuple[Weights, ...]:
    """The models of a base, by the names of its files."""
    if FILE not in paths:
        return (_weights("", paths),)
    folders = {
        path.partition("/")[0]
        for path in paths
        if path.count("/") == 1 and path.endswith((SUFFIX, INDEX_SUFFIX)) and _NAME.match(path.partition("/")[0])
    }
    return tuple(_weights(f"{folder}/", paths) for folder in sorted(folders))


def _weights(folder: str, paths: Collection[str]) -> Weights:
    for stem in STEMS:
        found = Weights(folder, f"{folder}{stem}{SUFFIX}", f"{folder}{stem}{INDEX_SUFFIX}")
        if found.single in paths or found.index in paths:
            return found
    return Weights(folder, f"{folder}{STEMS[0]}{SUFFIX}", f"{folder}{STEMS[0]}{INDEX_SUFFIX}")


def is_pipeline(config: Mapping[str, Any]) -> bool:
    """Whether a fingerprint's config is that of a pipeline."""
    return isinstance(config.get(COMPONENTS), dict)


def is_of_diffusers(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a pipeline, or of a model of diffusers."""
    return is_pipeline(config) or isinstance(config.get(CLASS), str)


def folders_of(document: Any) -> frozenset[str]:
    """The folders of a pipeline's components, from its model_index.json. Components that it lacks are null there."""
    if not isinstance(document, dict):
        return frozenset()
    return frozenset(
        name
        for name, value in document.items()
        if _NAME.match(name) and isinstance(value, list) and [type(item) for item in value] == [str, str]
    )
