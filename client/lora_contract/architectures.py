"""What transformers knows of its model classes: which of their parameters are one, and which setting says so.

The table is generated from the classes themselves (`python -m tests.architectures.generate`): neither a client nor a
merge on a CPU imports transformers. A class that it does not list is unknown, which is not the same as untied.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

import msgspec


class TiedGroup(msgspec.Struct, frozen=True, omit_defaults=True):
    """Parameters that share one tensor, by the names of the running model.

    by: paths of the nested configs ("" for the whole) whose `tie_word_embeddings` governs the group; none where it is
    always tied. every: it is untied only if all of them say so. default: tied if the config does not say.
    """

    members: tuple[str, ...]
    by: tuple[str, ...] = ()
    default: bool = True
    every: bool = False


class Architecture(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model class.

    embedding, output: the weights of input embedding and output layer; None where it has none. stored: what checkpoints
    call parameters of the groups that they name otherwise. nested: model types of the nested configs that the groups
    hold for. patterns: regular expressions of further tied parameters, whose number depends on the config. computed:
    the input embedding gives more than its rows, such as the norm of them. bypassed: regular expressions of modules
    whose weight the model uses without calling them, so that an adapter beside them does nothing.
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
    """transformers: the version it was generated from. untied: classes in which every parameter is a tensor of its own
    and whose input embedding and output layer have no names worth a row."""

    transformers: str
    architectures: dict[str, Architecture]
    untied: tuple[str, ...]


FILE: Final = "architectures.json"


@cache
def table() -> Table:
    data = resources.files("lora_contract").joinpath(FILE).read_bytes()
    return msgspec.json.decode(data, type=Table)


def architecture(name: str) -> Architecture | None:
    """The class of that name; None if it is unknown."""
    known = table()
    return known.architectures.get(name) or (_UNTIED if name in _untied() else None)


@cache
def _untied() -> frozenset[str]:
    return frozenset(table().untied)


_UNTIED: Final = Architecture()
