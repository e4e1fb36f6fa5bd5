"""lora-reg, the client: push, check, version and pull LoRA adapters.

Names are loaded on first use, so that `import lora_reg` is cheap and imports neither a network nor a tensor library.

    from lora_reg import Client, pull, push_adapter

    client = Client("http://127.0.0.1:8750")
    push_adapter(client, "./adapter", base="llama-2-7b", to="acme/sql-writer", tags=["candidate"])
    folder = pull(client, "acme/sql-writer:candidate").path
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_contract import __version__

if TYPE_CHECKING:
    from lora_contract.digest import Digest
    from lora_contract.errors import RegistryError
    from lora_contract.findings import Finding
    from lora_contract.reference import Reference
    from lora_reg.client import Client
    from lora_reg.config import Settings, load_settings
    from lora_reg.transfer.pull import Pulled, pull
    from lora_reg.transfer.push import Pushed, add_base, push_adapter


__all__ = [
    "Client",
    "Digest",
    "Finding",
    "Pulled",
    "Pushed",
    "Reference",
    "RegistryError",
    "Settings",
    "__version__",
    "add_base",
    "load_settings",
    "pull",
    "push_adapter",
]

_HOMES = {
    "Client": "lora_reg.client",
    "Digest": "lora_contract.digest",
    "Finding": "lora_contract.findings",
    "Pulled": "lora_reg.transfer.pull",
    "Pushed": "lora_reg.transfer.push",
    "Reference": "lora_contract.reference",
    "RegistryError": "lora_contract.errors",
    "Settings": "lora_reg.config",
    "add_base": "lora_reg.transfer.push",
    "load_settings": "lora_reg.config",
    "pull": "lora_reg.transfer.pull",
    "push_adapter": "lora_reg.transfer.push",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_reg' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
