"""Integrations with trainers. Names are loaded on first use, since each needs the library that it integrates with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_reg.integrations.trainer import LoraRegCallback

__all__ = ["LoraRegCallback"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lora_reg.integrations' has no attribute {name!r}")
    from lora_reg.integrations.trainer import LoraRegCallback

    return LoraRegCallback
