"""Comparison of two adapters of one base, module by module, from their factors."""

from __future__ import annotations

from lora_kernels.comparing.folders import compare_folders
from lora_kernels.comparing.modules import Comparison, ModuleDiff, compare_modules

__all__ = ["Comparison", "ModuleDiff", "compare_folders", "compare_modules"]
