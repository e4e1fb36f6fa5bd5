"""Composition of several adapters into one.

`compose_folders` composes folders, `compose_adapters` open readers. The methods are those of `lora_contract.methods`;
`folder.METHOD_FUNCTIONS` maps each to its function on one module.
"""

from __future__ import annotations

from lora_kernels.composing.folder import compose_adapters, compose_folders
from lora_kernels.composing.report import ComposedModule, ComposeReport

__all__ = ["ComposeReport", "ComposedModule", "compose_adapters", "compose_folders"]
