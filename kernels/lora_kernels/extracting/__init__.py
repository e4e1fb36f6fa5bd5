"""Extraction of a LoRA from the difference between a fine-tuned checkpoint and its base.

The functions, which load numpy, are imported on first access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_kernels.extracting.report import ExtractedModule, ExtractReport, UnheldChange

if TYPE_CHECKING:
    from lora_kernels.extracting.extraction import extract, extract_folders

__all__ = ["ExtractReport", "ExtractedModule", "UnheldChange", "extract", "extract_folders"]


def __getattr__(name: str) -> Any:
    if name in ("extract", "extract_folders"):
        from lora_kernels.extracting import extraction

        return getattr(extraction, name)
    raise AttributeError(name)
