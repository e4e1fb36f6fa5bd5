"""Names of repositories for what a source lists, and their versions."""

from __future__ import annotations

import re
from typing import Final

from lora_contract import reference
from lora_contract.errors import RegistryError
from lora_contract.reference import MAX_NAME
from lora_contract.wire.repositories import VersionView
from lora_reg.client import Client
from lora_reg.importing.items import Item

_VERSIONS: Final = 1000
_OTHER: Final = re.compile(r"[^A-Za-z0-9._-]+")
_SEPARATORS: Final = re.compile(r"[._-]{2,}")


class Names:
    """Gives each source one repository. to: `NAMESPACE` or `NAMESPACE/NAME`."""

    def __init__(self, client: Client, to: str | None) -> None:
        namespace, _, name = (to or "").partition("/")
        self._client = client
        self.namespace = reference.check_namespace(namespace) if namespace else client.namespace
        self._name = reference.check_name(name) if name else None
        self._owners: dict[str, str] = {}
        self._versions: dict[str, list[VersionView]] = {}

    def target(self, item: Item) -> str:
        """The repository of an item. Raises `conflict` if another source of this run has it."""
        target = f"{self.namespace}/{self._name or repository_name(item.name)}"
        # All versions of a registered model go into one repository.
        owner = item.source.rpartition("/")[0] if item.source.startswith("mlflow:") else item.source
        if self._owners.setdefault(target.casefold(), owner) != owner:
            raise RegistryError(
                "conflict",
                f"{target} is the name of {self._owners[target.casefold()]} already.",
                hint="Import it alone, with --to NAMESPACE/NAME.",
            )
        return target

    def versions(self, target: str) -> list[VersionView]:
        """The versions of a repository when it was first asked for; empty if there is none."""
        if target not in self._versions:
            try:
                self._versions[target] = list(self._client.versions(target, limit=_VERSIONS))
            except RegistryError as error:
                if error.code not in ("not-found", "deleted"):
                    raise
                self._versions[target] = []
        return self._versions[target]


def repository_name(text: str) -> str:
    """The nearest name that a repository may have. Raises `invalid-reference` if nothing is left of it."""
    name = _SEPARATORS.sub("-", _OTHER.sub("-", text)).strip("._-")[:MAX_NAME].rstrip("._-")
    try:
        return reference.check_name(name)
    except RegistryError:
        return reference.check_name(name.lower())
