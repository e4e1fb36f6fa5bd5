"""Imports of services that are forked, and of the workers that they start."""

from typing import Final

import lora_registry.serving
import lora_registry.worker.main  # noqa: F401

STARTS: Final = {"lora_registry.serving": ("lora_registry.cli", "worker")}
