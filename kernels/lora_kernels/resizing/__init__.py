"""Rewriting of adapters with other factors, at another rank or as plain LoRA with the same product, and of bases with
another number of tokens.

The functions, which load numpy, are imported on first access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_kernels.resizing.report import ConvertedModule, ConvertReport, ResizedModule, ResizeReport

if TYPE_CHECKING:
    from lora_kernels.resizing.convert import convert_folder
    from lora_kernels.resizing.resize import resize_folder
    from lora_kernels.resizing.vocabulary import resize_vocabulary_folder

__all__ = [
    "ConvertReport",
    "ConvertedModule",
    "ResizeReport",
    "ResizedModule",
    "convert_folder",
    "resize_folder",
    "resize_vocabulary_folder",
]


def __getattr__(name: str) -> Any:
    if name == "convert_folder":
        from lora_kernels.resizing.convert import convert_folder

        return convert_folder
    if name == "resize_folder":
        from lora_kernels.resizing.resize import resize_folder

        return resize_folder
    if name == "resize_vocabulary_folder":
        from lora_kernels.resizing.vocabulary import resize_vocabulary_folder

        return resize_vocabulary_folder
    raise AttributeError(name)
