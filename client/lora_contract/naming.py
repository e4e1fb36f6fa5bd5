"""Names of a base's modules and parameters: those in its files, found by any name that they have had."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from lora_contract.architectures import is_known
from lora_contract.renames import NONE, Conversion, Renaming, renaming

_ALIKE: Final = ("LlavaForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "MixtralForCausalLM")
"""Classes whose renames are tried for a class that is not in the table: many of them follow one of these."""


_EXPERTS: Final = ".experts."


class Changed(NamedTuple):
    """A module of the running model that transformers makes of other tensors. file: one of them."""

    file: str
    operations: tuple[str, ...]
    joined: bool


class Naming:
    """Names in the files of a base by today's names.

    Attributes:
        changed: by today's path, the modules that are no module of the files under another name.
        known: the class is in the tables.
        experts: parameters of all experts of a layer, each with the modules of one expert that it joins, in order.
        prefix: of the model without its head.
    """

    def __init__(
        self,
        renamings: tuple[Renaming, ...] = (),
        *,
        modules: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
        changed: Mapping[str, Changed] | None = None,
        known: bool = True,
    ) -> None:
        self._renamings = renamings
        self._modules = modules or {}
        self._parameters = parameters or {}
        self.known = known
        self.changed = changed or {}
        self.experts = renamings[0].experts() if known and renamings else ()
        self.prefix = renamings[0].prefix if known and renamings else ""

    def module(self, path: str) -> Iterator[str]:
        """Names that the module at a path may have in the files."""
        yield from self._found(path, self._modules, module=True)

    def parameter(self, name: str) -> Iterator[str]:
        """Names that a parameter may have in the files."""
        yield from self._found(name, self._parameters, module=False)

    def moved(self) -> Iterator[tuple[str, str]]:
        """Today's names of parameters that are no weight of a module of their own any more, with those in the files."""
        return ((today, name) for today, name in self._parameters.items() if not today.endswith((".weight", ".bias")))

    def today(self, path: str) -> str:
        """Today's path of a module; the path itself if the class is not in the table."""
        return self._renamings[0].module(path) if self.known and self._renamings else path

    def why(self, path: str) -> str | None:
        """Why there is no module at a path, as a sentence without its end; None if nothing is known of it."""
        found = self.changed.get(self.today(path))
        if found is None:
            return self._now(path)
        verb = "joins it from" if found.joined else "makes it of"
        return f"transformers {verb} the base's {found.file} when it loads the base ({', '.join(found.operations)})"

    def conversion(self, path: str) -> Conversion | None:
        """What transformers makes of a module of the files when it loads them; None if it stays a module."""
        known = self._renamings[0] if self.known and self._renamings else NONE
        return known.conversion(known.parameter(f"{path}.weight"))

    def _now(self, path: str) -> str | None:
        """What transformers makes of a module that the base no longer has."""
        found = self.conversion(path)
        if found is None:
            return None
        return f"transformers now has {' and '.join(found.made)} in its place"

    def _found(self, name: str, table: Mapping[str, str], *, module: bool) -> Iterator[str]:
        if name in table:
            yield table[name]
        if not self.known:
            return
        for each in self._renamings:
            today = each.module(name) if module else each.parameter(name)
            if today != name:
                yield table.get(today, today)


def naming(architecture: str, config: Mapping[str, Any], modules: Iterable[str], parameters: Iterable[str]) -> Naming:
    """The names of a base. modules, parameters: those in its files."""
    known = renaming(architecture, config)
    if known is None and is_known(architecture):
        return Naming()
    renamings = (known,) if known is not None else _alike()
    modules, parameters = tuple(modules), tuple(parameters)
    by_module: dict[str, str] = {}
    by_parameter: dict[str, str] = {}
    for each in renamings:
        for path, today in _renamed(modules, each.module):
            by_module.setdefault(today, path)
        for name, today in _renamed(parameters, each.parameter):
            by_parameter.setdefault(today, name)
    changed = dict(_changed(known, parameters)) if known is not None else {}
    for path in changed:
        by_module.pop(path, None)
    return Naming(renamings, modules=by_module, parameters=by_parameter, changed=changed, known=known is not None)


def _renamed(names: Iterable[str], today: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """The names that have another name today, with that. Names that differ in an expert's number alone are renamed
    alike: there may be 100,000 of them."""
    seen: dict[str, str] = {}
    for name in names:
        head, found, rest = name.partition(_EXPERTS)
        number, _, leaf = rest.partition(".")
        first = f"{head}{_EXPERTS}0.{leaf}" if found and number.isdecimal() else name
        if first not in seen:
            seen[first] = today(first)
        new = seen[first]
        if first != name:
            new = new.replace(f"{_EXPERTS}0.", f"{_EXPERTS}{number}.", 1)
        if new != name:
            yield name, new


def _changed(known: Renaming, parameters: Iterable[str]) -> Iterator[tuple[str, Changed]]:
    for name in parameters:
        if _EXPERTS in name and f"{_EXPERTS}0." not in name:
            continue  # as the first expert
        found = known.conversion(known.parameter(name))
        if found is None or found.stacks_experts:
            continue
        for made in found.made:
            path = made.removesuffix(".weight").removesuffix(".bias")
            yield path, Changed(name, found.operations, found.joined)


def _alike() -> tuple[Renaming, ...]:
    return tuple(renaming(name, {}) or NONE for name in _ALIKE)
