"""Which files of a source are taken, and which registered base has a name."""

from __future__ import annotations

from collections.abc import Mapping

from lora_contract.adapter import files
from lora_contract.adapter.files import ReadFile
from lora_contract.adapter.report import CheckReport
from lora_contract.errors import RegistryError
from lora_contract.fingerprint import INDEX, SINGLE, _index
from lora_reg.client import Client
from lora_reg.transfer.scan import HOUSEKEEPING


def is_adapter_file(path: str) -> bool:
    """Whether a file may be part of an adapter, by its name."""
    return path not in HOUSEKEEPING and files._allowed(path, CheckReport(), base=False)


def is_base_file(path: str) -> bool:
    """Whether a file may be part of a base, by its name."""
    return path not in HOUSEKEEPING and files._allowed(path, CheckReport(), base=True)


def unused_weights(sizes: Mapping[str, int], read: ReadFile) -> frozenset[str]:
    """The weight files of a base that transformers would not load. Raises `rejected` for an unreadable index."""
    used: set[str] = {SINGLE} if SINGLE in sizes else set()
    if not used and INDEX in sizes:
        used = {INDEX, *_index({INDEX: (sizes[INDEX], "")}, read).values()}
    return frozenset(path for path in sizes if path.endswith((".safetensors", INDEX)) and path not in used)


def find_base(client: Client, named: str, namespace: str | None) -> str | None:
    """The registered base of this name or with this alias; None if there is none. Raises `conflict` for several."""
    found: set[str] = set()
    for base in client.repositories(kind="base"):
        ref = f"{base.namespace}/{base.name}"
        own = [base.name] if base.namespace in (namespace, client.namespace) else []
        if named.casefold() in {name.casefold() for name in (ref, *own, *base.aliases)}:
            found.add(ref)
    if len(found) > 1:
        raise RegistryError(
            "conflict", f"{named} is a name of {' and '.join(sorted(found))}.", hint="Name one with --base."
        )
    return next(iter(found), None)
