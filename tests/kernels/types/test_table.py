"""The table of rooms agrees with the contract's rows, and every type has a formula to be compared with."""

from __future__ import annotations

import typing

from lora_contract.adapter.types import TYPES
from lora_kernels.types.refused import REASONS
from lora_kernels.types.table import ROOMS, AnyUpdate
from tests.support.oracle_types import FORMULAS

# Types whose right result is computed elsewhere.
OTHERWISE = {
    "LORA": "tests.support.oracle and oracle_lora",
    "TRAINABLE_TOKENS": "rows that are replaced: tests.support.oracle_lora",
    "BONE": "MISS under its old name",
}


def test_a_type_has_a_room_or_a_reason() -> None:
    assert ROOMS.keys() | REASONS.keys() == TYPES.keys()
    assert not ROOMS.keys() & REASONS.keys()
    # A type without any merged form has no room.
    assert all(TYPES[name].mergeable for name in ROOMS)


def test_every_room_has_a_formula_in_the_oracle() -> None:
    assert FORMULAS.keys() | OTHERWISE.keys() == ROOMS.keys()
    assert not FORMULAS.keys() & OTHERWISE.keys()


def test_every_room_but_loras_has_a_row_in_the_docs() -> None:
    assert [name for name, room in ROOMS.items() if room.page is None] == ["LORA"]


def test_updates_are_told_apart_by_their_tags() -> None:
    updates = typing.get_args(AnyUpdate)
    tags = [update.__struct_config__.tag for update in updates]
    assert len(set(tags)) == len(tags)
    assert {update for room in ROOMS.values() for update in room.updates} <= set(updates)
