"""Imports of workers that are forked, and of their warm processes for validations."""

from typing import Final

import lora_kernels.validating.imports  # noqa: F401
import lora_registry.worker.main  # noqa: F401

STARTS: Final = {
    "lora_registry.processes.warm": ("lora_registry.processes.template", "lora_kernels.validating.imports")
}
