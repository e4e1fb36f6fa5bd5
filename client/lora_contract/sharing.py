"""Tied parameters of a base, from the structure of its class, its config and the names in its files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from lora_contract.architectures import Architecture, TiedGroup, architecture
from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.pipelines import is_of_diffusers

KEY: Final = "tie_word_embeddings"
_VOCABULARIES: Final = ("vocab_size", "n_words", "num_embeddings")


class Member(msgspec.Struct, frozen=True):
    """A parameter of a group. name: in the running model. stored: its actual or expected name in the files. tensor:
    None if it is not in the files."""

    name: str
    stored: str
    tensor: BaseTensor | None

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of its module, in the running model and in the files."""
        return tuple(dict.fromkeys(name.rpartition(".")[0] for name in (self.name, self.stored)))


class Group(msgspec.Struct, frozen=True):
    """Parameters that share a tensor, or may share one. by: paths of the configs that decide it."""

    members: tuple[Member, ...]
    by: tuple[str, ...]

    @property
    def held(self) -> BaseTensor:
        """The stored tensor of the group, which members without one share."""
        return next(member.tensor for member in self.members if member.tensor is not None)

    def member(self, name: str | None) -> Member | None:
        return next((member for member in self.members if member.name == name), None)


class Sharing(msgspec.Struct, frozen=True):
    """The tied parameters of a base.

    Args:
        groups: groups with a tensor in the files.
        embedding, output: weights of the input embedding and output layer, by their names in the running model.
        aliases: names in checkpoints by names in the running model.
        patterns: regular expressions of further tied parameters.
        computed: the input embedding returns more than its rows.
        bypassed: regular expressions of modules that are never called.
        unknown: why further tied parameters cannot be determined; None if they can.
    """

    groups: tuple[Group, ...] = ()
    embedding: str | None = None
    output: str | None = None
    aliases: dict[str, str] = {}
    patterns: tuple[str, ...] = ()
    computed: bool = False
    bypassed: tuple[str, ...] = ()
    unknown: str | None = None

    def bypasses(self, path: str) -> bool:
        """Whether the model uses the weight of the module at a path without calling the module."""
        return any(re.fullmatch(pattern, path) for pattern in self.bypassed)

    def partners(self, name: str) -> list[str]:
        """The other parameters that are tied to a parameter of the running model."""
        groups = [group for group in self.groups if group.member(name) is not None]
        return [member.name for group in groups for member in group.members if member.name != name]

    def matches(self, names: set[str]) -> bool:
        """Whether one of the names matches `patterns`."""
        return any(re.match(pattern, name) for pattern in self.patterns for name in names)


def sharing(base: BaseFingerprint, resolve: Callable[[str], BaseTensor | None]) -> Sharing:
    """Determine the tied parameters of a base. resolve: returns the stored tensor of a parameter of the running model,
    or None."""
    known = architecture(base.architecture)
    if known is None and is_of_diffusers(base.config):
        return Sharing()  # models of diffusers tie nothing
    if known is None:
        return Sharing(unknown=None if _untied(base.config) else _unknown(base.architecture))
    unexpected = [
        path for path, kind in known.nested.items() if nested(base.config, path).get("model_type", kind) != kind
    ]
    if unexpected:
        kind = nested(base.config, unexpected[0])["model_type"]
        return Sharing(unknown=f"{base.architecture} with {unexpected[0]} of the type {kind}")
    found, unknown = [], None
    for group in known.groups:
        members = tuple(_members(group, known, resolve))
        if _off(group, members, base.config):
            continue
        if all(member.tensor is None for member in members):
            unknown = f"{base.architecture} without {members[0].name}" if known.output in group.members else unknown
        elif len({member.tensor.shape for member in members if member.tensor is not None}) == 1:
            found.append(Group(members, group.by))
    return Sharing(
        groups=tuple(found),
        embedding=known.embedding,
        output=known.output,
        aliases=known.stored,
        patterns=known.patterns,
        computed=known.computed,
        bypassed=known.bypassed,
        unknown=unknown,
    )


def vocabularies(config: Mapping[str, Any]) -> set[int]:
    """All vocabulary sizes in a config."""
    found: set[int] = set()
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= vocabularies(value)
        elif isinstance(value, int) and not isinstance(value, bool) and key.endswith(_VOCABULARIES):
            found.add(value)
    return found


def nested(config: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """The nested config at a path; empty if it is missing."""
    part: Any = config
    for name in path.split(".") if path else ():
        part = part.get(name) if isinstance(part, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _members(group: TiedGroup, known: Architecture, resolve: Callable[[str], BaseTensor | None]) -> Iterator[Member]:
    """The members of a group. A missing one gets the checkpoint's name if the others use such names."""
    renamed = True
    tensors: dict[str, BaseTensor | None] = {}
    for name in group.members:
        stored = known.stored.get(name, name)
        tensors[name] = resolve(stored) or resolve(name)
        tensor = tensors[name]
        if stored != name and tensor is not None:
            renamed = tensor.name != name
    for name, tensor in tensors.items():
        stored = known.stored.get(name, name) if renamed else name
        yield Member(name, stored if tensor is None else tensor.name, tensor)


def _off(group: TiedGroup, members: tuple[Member, ...], config: Mapping[str, Any]) -> bool:
    """Whether the config unties a group. In doubt it counts as tied: at worst a merge then separates two tensors."""
    settings = [nested(config, path).get(KEY) for path in group.by]
    if True in (*settings, config.get(KEY)) or not group.by:
        return False
    if group.every and None in settings:
        return not group.default and all(member.tensor is not None for member in members)
    if False in settings:
        return len(members) == 2 or all(member.tensor is not None for member in members)
    return not group.default and all(member.tensor is not None for member in members)


def _untied(config: Mapping[str, Any]) -> bool:
    """Whether a config states that nothing is tied."""
    return config.get(KEY) is False and True not in set(_settings(config))


def _settings(config: Mapping[str, Any]) -> Iterator[bool]:
    for key, value in config.items():
        if key == KEY and isinstance(value, bool):
            yield value
        elif isinstance(value, Mapping):
            yield from _settings(value)


def _unknown(name: str) -> str:
    return f"the architecture {name}" if name else "a config without an architecture"
