"""Every text that a request may hold has a limit."""

from __future__ import annotations

import importlib
import pkgutil
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from lora_contract import wire
from lora_contract.wire.common import Request

WITHOUT_LIMIT = {
    "CommitRequest.message": "limited by the commit, which names the limit",
    "CommitRequest.meta": "limited by the commit, which names the limit",
    "Envelope.payload": "a signed statement: limited when it is parsed, and by the size of a body",
    "Envelope.payload_type": "compared with the one known type",
    "Signature.sig": "limited by the length of a signature when it is verified",
    "Signature.keyid": "compared with the digest of the key",
}


def requests() -> list[type[msgspec.Struct]]:
    for module in pkgutil.iter_modules(wire.__path__):
        importlib.import_module(f"{wire.__name__}.{module.name}")
    found: list[type[msgspec.Struct]] = []
    waiting: list[type[msgspec.Struct]] = [Request]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        found.append(kind)
    return sorted(found, key=lambda kind: kind.__name__)


def texts(where: str, kind: Any) -> Iterator[str]:
    """Where texts without a limit are."""
    if isinstance(kind, inspect.StrType) and kind.max_length is None and kind.pattern is None:
        yield where
    elif isinstance(kind, inspect.StructType):
        for field in kind.fields:
            yield from texts(f"{kind.cls.__name__}.{field.name}", field.type)
    elif isinstance(kind, inspect.UnionType):
        for one in kind.types:
            yield from texts(where, one)
    elif isinstance(kind, inspect.ListType | inspect.SetType | inspect.VarTupleType):
        yield from texts(where, kind.item_type)
    elif isinstance(kind, inspect.DictType) and not isinstance(kind.value_type, inspect.AnyType):
        yield from texts(where, kind.key_type)
        yield from texts(where, kind.value_type)


@pytest.mark.parametrize("kind", requests(), ids=lambda kind: kind.__name__)
def test_texts_of_requests_have_limits(kind: type[msgspec.Struct]) -> None:
    found = set(texts(kind.__name__, typing.cast(Any, inspect.type_info(kind))))
    assert {name.removeprefix(f"{kind.__name__}.") for name in found if name not in WITHOUT_LIMIT} == set()
