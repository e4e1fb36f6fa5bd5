"""Names of parameters in files and in the running model, where they differ: transformers renames, joins and splits
what older versions, and authors of models, called otherwise.

Today's names (those of the version of transformers that the table was generated from) are the common ones: a name of
any version leads to them. The table holds transformers' own rules (`python -m tests.architectures.generate_renames`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any, Final, NamedTuple

import msgspec

from lora_contract import decoding


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """A transform of transformers.

    Args:
        find: a regular expression, searched in a name; one named group `g0`, `g1`, … for each pattern that it is for.
        put: what replaces the match: one for all patterns, or one for each. Of a conversion: the patterns of what is
            made.
        offset: added to the number that the match holds.
        made: operations of a conversion; empty if tensors are only renamed.
        of: patterns of the tensors that a conversion takes.
    """

    find: str
    put: tuple[str, ...]
    offset: int = 0
    made: tuple[str, ...] = ()
    of: tuple[str, ...] = ()


class Part(NamedTuple):
    """Rules for a submodel. path: of the submodel. config: path of its config in that of the model."""

    rules: str
    path: str
    config: str


class Slot(NamedTuple):
    """A submodel whose class its config decides. model_type: the one that the model's parts are for."""

    path: str
    model_type: str


class RenamedClass(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model class.

    Args:
        prefix: of the model without its head.
        parts: in the order in which they apply.
        slots: by the path of the nested config.
        kept: today's names, with # for each number, that are not changed, although the rules would.
    """

    prefix: str
    parts: tuple[Part, ...] = ()
    slots: dict[str, Slot] = {}
    kept: frozenset[str] = frozenset()


class Converted(msgspec.Struct, frozen=True):
    """The model types of which PEFT converts older adapters on loading: names, and experts that are now one tensor."""

    names: frozenset[str]
    experts: frozenset[str]


class RenameTable(msgspec.Struct, frozen=True):
    """The table. rules: by the key that transformers has them under. types: the class of a model type, for those that
    are submodels of others."""

    transformers: str
    peft: Converted
    rules: dict[str, tuple[Rule, ...]]
    types: dict[str, str]
    classes: dict[str, RenamedClass]


FILE: Final = "renames.json"
_LEGACY: Final = "legacy"
_DEPTH: Final = 4
_STACKED: Final = (("MergeModulelist(dim=0)",), ("MergeModulelist(dim=0)", "Concatenate(dim=1)"))
_NUMBER: Final = re.compile(r"\d+")


@cache
def _text() -> bytes:
    return resources.files("lora_contract").joinpath(FILE).read_bytes()


@cache
def rename_table() -> RenameTable:
    return decoding.decode(_text(), RenameTable)


class Scoped(NamedTuple):
    """A rule for the names of a submodel. scope: its path without the prefix of the model; None for the whole model."""

    find: re.Pattern[str]
    rule: Rule
    scope: str | None
    prefix: str

    def match(self, name: str) -> tuple[str, str, re.Match[str]] | None:
        """The part of a name before the submodel, the rest, and the match in the rest; None if there is none."""
        head = ""
        if self.scope is not None:
            scope = f"{self.scope}." if self.scope else ""
            prefix = f"{self.prefix}." if self.prefix else ""
            if name.startswith(prefix + scope):
                head = prefix + scope
            elif name.startswith(scope):
                head = scope
            else:
                return None
        rest = name[len(head) :]
        found = self.find.search(rest)
        return None if found is None else (head, rest, found)

    def apply(self, name: str) -> str:
        found = self.match(name)
        if found is None:
            return name
        head, rest, match = found
        group = next(key for key, value in match.groupdict().items() if value is not None)
        first, number = match.re.groupindex[group], int(group[1:])
        put = self.rule.put[number] if len(self.rule.put) > number else self.rule.put[0]
        if self.rule.offset:
            put = put.replace(r"\1", str(int(match.group(first + 1)) + self.rule.offset))
        new = re.sub(r"\\(\d)", lambda digit: match.group(first + int(digit[1])), put)
        return head + rest.replace(match.group(0), new, 1)


class Conversion(NamedTuple):
    """What transformers makes of a tensor. made: names of the running model. joined: of several tensors."""

    made: tuple[str, ...]
    operations: tuple[str, ...]
    joined: bool

    @property
    def stacks_experts(self) -> bool:
        return bool(self.operations) and self.operations[0].startswith("MergeModulelist")


class Renaming:
    """The rules of a model class, in the order in which they apply."""

    def __init__(self, rules: tuple[Scoped, ...], prefix: str = "", kept: frozenset[str] = frozenset()) -> None:
        self.prefix = prefix
        self._kept = kept
        self._renamings = tuple(each for each in rules if not each.rule.made)
        self._conversions = tuple(each for each in rules if each.rule.made)

    def __bool__(self) -> bool:
        return bool(self._renamings or self._conversions)

    def parameter(self, name: str) -> str:
        """Today's name of a parameter, but for what a conversion does to it."""
        if self._kept and _NUMBER.sub("#", name) in self._kept:
            return name
        for each in self._renamings:
            name = each.apply(name)
        return name

    def module(self, path: str) -> str:
        """Today's path of a module; the path itself if its weight is no longer one of a module."""
        found = self.parameter(f"{path}.weight")
        return found.removesuffix(".weight") if found.endswith(".weight") else path

    def experts(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The parameters of all experts of a layer, each with the modules of one expert whose rows it has in a row."""
        return tuple(
            (_last(each.rule.put[0]), tuple(_last(source.removesuffix("weight")) for source in each.rule.of))
            for each in self._conversions
            if each.rule.made in _STACKED
        )

    def conversion(self, name: str) -> Conversion | None:
        """What becomes of a parameter, by its name after all renamings; None if it stays as it is."""
        for each in self._conversions:
            found = each.match(name)
            if found is None:
                continue
            head, rest, match = found
            made = tuple(head + rest.replace(match.group(0), put, 1) for put in each.rule.put)
            return Conversion(made, each.rule.made, len(each.rule.of) > 1)
        return None


NONE: Final = Renaming(())


def renaming(architecture: str, config: Mapping[str, Any]) -> Renaming | None:
    """The rules of a class with a config; None if the table does not know the class."""
    # Most classes have no rules, and to decode the table takes a fifth of the time in which a merge starts.
    known = rename_table().classes.get(architecture) if f'\n"{architecture}":'.encode() in _text() else None
    if known is None:
        return None
    rules = tuple(
        scoped
        for part in (*_parts(known, config), Part(_LEGACY, "", ""))
        for scoped in _scoped(part.rules, _scope(part.path, known.prefix), known.prefix)
    )
    return Renaming(rules, known.prefix, known.kept)


def _last(pattern: str) -> str:
    """The last component of a pattern of names."""
    return pattern.replace("\\", "").rstrip(".").rpartition(".")[2]


def _scope(path: str, prefix: str) -> str | None:
    return path.removeprefix(prefix).removeprefix(".") if path else None


@cache
def _scoped(key: str, scope: str | None, prefix: str) -> tuple[Scoped, ...]:
    return tuple(Scoped(re.compile(rule.find), rule, scope, prefix) for rule in rename_table().rules.get(key, ()))


def _parts(known: RenamedClass, config: Mapping[str, Any], depth: int = 0) -> Iterator[Part]:
    """The parts of a class; those of a submodel of another type than usual are replaced by the rules of that type."""
    other = {
        path: model_type
        for path, slot in known.slots.items()
        if (model_type := _model_type(config, path)) not in (None, slot.model_type)
    }
    for part in known.parts:
        if not any(part.config == path or part.config.startswith(f"{path}.") for path in other):
            yield part
    for path, model_type in other.items():
        name = rename_table().types.get(model_type or "")
        inner = rename_table().classes.get(name or "")
        if inner is None or depth >= _DEPTH:
            continue
        base = known.slots[path].path
        for part in _parts(inner, _nested(config, path), depth + 1):
            yield Part(part.rules, f"{base}.{part.path}".rstrip("."), path)


def _model_type(config: Mapping[str, Any], path: str) -> str | None:
    value = _nested(config, path).get("model_type")
    return value if isinstance(value, str) else None


def _nested(config: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    part: Any = config
    for name in path.split("."):
        part = part.get(name) if isinstance(part, Mapping) else None
    return part if isinstance(part, Mapping) else {}
