"""Tied parameters of the model classes of transformers, and the settings that govern them.

The table is generated from the classes (`python -m tests.architectures.generate`), since neither a client nor a merge
on a CPU imports transformers. A class that is not listed is unknown, which differs from untied.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

import msgspec

from lora_contract import decoding


class TiedGroup(msgspec.Struct, frozen=True, omit_defaults=True):
    """Parameters that share one tensor, by the names of the running model.

    Args:
        by: paths of the nested configs ("" for the root) whose `tie_word_embeddings` governs the group; empty if it is
            always tied.
        every: the group is untied only if all of them are false.
        default: tied if the setting is missing.
    """

    members: tuple[str, ...]
    by: tuple[str, ...] = ()
    default: bool = True
    every: bool = False


class Architecture(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model class.

    Args:
        embedding, output: weights of the input embedding and output layer; None if it has none.
        stored: names in checkpoints of parameters that are renamed on loading.
        nested: model types of the nested configs for which the groups are valid.
        patterns: regular expressions of further tied parameters, whose number depends on the config.
        computed: the input embedding returns more than its rows, such as their norm.
        bypassed: regular expressions of modules whose weight is used without calling them: adapters have no effect.
    """

    groups: tuple[TiedGroup, ...] = ()
    embedding: str | None = None
    output: str | None = None
    stored: dict[str, str] = {}
    nested: dict[str, str] = {}
    patterns: tuple[str, ...] = ()
    computed: bool = False
    bypassed: tuple[str, ...] = ()


class Table(msgspec.Struct, frozen=True):
    """The table. transformers: the version it was generated from. untied: classes without tied parameters whose input
    embedding and output layer need no row."""

    transformers: str
    architectures: dict[str, Architecture]
    untied: tuple[str, ...]


FILE: Final = "architectures.json"


@cache
def table() -> Table:
    data = resources.files("lora_contract").joinpath(FILE).read_bytes()
    return decoding.decode(data, Table)


def architecture(name: str) -> Architecture | None:
    """Look up a class by name; None if it is unknown."""
    known = table()
    return known.architectures.get(name) or (_UNTIED if name in _untied() else None)


def is_known(name: str) -> bool:
    """Whether a class is in the table."""
    return name in table().architectures or name in _untied()


@cache
def _untied() -> frozenset[str]:
    return frozenset(table().untied)


_UNTIED: Final = Architecture()
