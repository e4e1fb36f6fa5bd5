"""Adapters of a Hub: one repository, those of an organisation, those of a base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lora_contract.errors import RegistryError
from lora_reg.importing.hub import Hub
from lora_reg.importing.items import Item, Opened, SourceFile, Unreadable


@dataclass(frozen=True, slots=True)
class HubSource:
    """repository and revision: one repository. author, base: those that a Hub lists for them."""

    hub: Hub
    repository: str | None = None
    revision: str | None = None
    author: str | None = None
    base: str | None = None

    def items(self) -> Iterator[Item | Unreadable]:
        if self.repository is not None:
            yield self._item(self.repository, self.revision)
            return
        for repo in self.hub.list(author=self.author, base=self.base):
            try:
                yield self._item(repo, None)
            except RegistryError as error:
                if error.code in ("unavailable", "rate-limited"):
                    raise
                yield Unreadable(f"hf://{repo}", error)

    def _item(self, repo: str, revision: str | None) -> Item:
        found = self.hub.repository(repo, revision)
        return Item(f"hf://{repo}", found.commit, repo.rpartition("/")[2], found.files, base=found.base)

    def open(self, item: Item, file: SourceFile, start: int) -> Opened:
        return self.hub.open(item.source.removeprefix("hf://"), item.revision, file.path, start)

    def close(self) -> None:
        self.hub.close()
