"""The registered base of an adapter: the one that was given, or the one that the adapter names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lora_contract.errors import RegistryError
from lora_reg.client import Client
from lora_reg.importing import hub
from lora_reg.transfer.pinning import ResolvedBase, find_base, pin_base


class Bases:
    """Looks bases up, each once.

    Args:
        client: of the registry.
        given: references of `--base`; empty: by the names that adapters give.
        namespace: that of the new versions; preferred if several bases have one alias.
    """

    def __init__(self, client: Client, given: Sequence[str], namespace: str | None) -> None:
        self._client = client
        self._given = tuple(given)
        self._pinned: dict[str, ResolvedBase] = {}
        self._found: dict[str, str | None] = {}
        self._namespace = namespace

    def pin(self, ref: str) -> ResolvedBase:
        if ref not in self._pinned:
            self._pinned[ref] = pin_base(self._client, ref)
        return self._pinned[ref]

    def given(self) -> list[ResolvedBase]:
        """The bases of `--base`. Raises `not-found`."""
        return [self.pin(ref) for ref in self._given]

    def find(self, named: str | None, *, fits: Callable[[ResolvedBase], bool] | None = None) -> ResolvedBase:
        """The base of an adapter.

        Args:
            named: what the adapter calls its base; None if it does not say.
            fits: whether a base has the adapter's modules; for formats that do not name their base.

        Raises RegistryError `not-found` with the command that registers it.
        """
        given = self.given()
        by_name = [base for base in given if named in base.names]
        if by_name or (len(given) == 1 and fits is None):
            return (by_name or given)[0]
        if given:
            fitting = [base for base in given if fits is None or fits(base)]
            if len(fitting) == 1:
                return fitting[0]
            which = "none of them" if not fitting else "more than one of them"
            raise RegistryError(
                "not-found",
                f"The adapter {f'names the base {named}' if named else 'names no base'}, and of those given with "
                f"--base {which} {'has its modules' if fits else 'is known by that name'}.",
                hint="Name its base with --base.",
            )
        if named is None:
            raise RegistryError(
                "usage", "The adapter does not name its base.", hint="Name a registered base with --base NAME."
            )
        if named not in self._found:
            self._found[named] = find_base(self._client, named, self._namespace)
        found = self._found[named]
        if found is None:
            raise RegistryError(
                "not-found", f"No registered base is named {named[:200]}, the base of the adapter.", hint=_hint(named)
            )
        return self.pin(found)


def _hint(named: str) -> str:
    """How to register a base. Commands hold only names that a shell does not interpret: they are a stranger's."""
    if not hub.is_id(named):
        return "Name the registered base with --base NAME."
    return (
        f"Register it with `lora-reg base add {named.rpartition('/')[2].lower()} hf://{named}`, name it with "
        f"`lora-reg base alias NAME {named}`, or give --base NAME."
    )
