"""Model classes of transformers with the head of a task: what a base becomes when an adapter brings that head.

The table is generated from the classes (`python -m tests.architectures.generate_heads`), as that of tied parameters is.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

import msgspec

from lora_contract import decoding


class HeadClass(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model class, by the names of its parameters.

    Args:
        prefix: of the parameters of the model that the head is on.
        body: first components of their names after the prefix.
        head: names of all other parameters.
        labels: those of `head` whose first dimension is the number of labels.
    """

    prefix: str
    body: tuple[str, ...]
    head: tuple[str, ...]
    labels: tuple[str, ...] = ()


class HeadTable(msgspec.Struct, frozen=True):
    """The table. tasks: by PEFT's task and the model type, the classes that transformers has for it, the usual one
    first."""

    transformers: str
    tasks: dict[str, dict[str, tuple[str, ...]]]
    classes: dict[str, HeadClass]


FILE: Final = "heads.json"


@cache
def head_table() -> HeadTable:
    data = resources.files("lora_contract").joinpath(FILE).read_bytes()
    return decoding.decode(data, HeadTable)


def class_for(task: str, model_type: str, present: str) -> str | None:
    """The class for a task: `present`, the base's own, if it is one; None if the model type has none."""
    types = head_table().tasks.get(task, {})
    if any(present in names for names in types.values()):
        return present
    return next(iter(types.get(model_type, ())), None)


def head_class(name: str) -> HeadClass | None:
    return head_table().classes.get(name)
