"""Decode into msgspec's types, in any number of threads.

msgspec completes what it knows of a struct when something is first decoded into it. A thread that decodes into the same
struct meanwhile takes the incomplete part, and the process ends with a segmentation fault (seen with msgspec 0.22).
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any, Final, TypeAlias, TypeVar, overload

import msgspec

T = TypeVar("T")
Text: TypeAlias = bytes | bytearray | memoryview | str

_decoders: Final[dict[Any, msgspec.json.Decoder[Any]]] = {}
_completing: Final = threading.Lock()


@overload
def decode(data: Text, kind: type[T]) -> T: ...
@overload
def decode(data: Text, kind: Any) -> Any: ...
def decode(data: Text, kind: Any) -> Any:
    """Decode JSON text. Raises msgspec.DecodeError, or its subclass msgspec.ValidationError where the text is JSON."""
    return (_decoders.get(kind) or _complete(kind)).decode(data)


@overload
def convert(value: Any, kind: type[T]) -> T: ...
@overload
def convert(value: Any, kind: Any) -> Any: ...
def convert(value: Any, kind: Any) -> Any:
    """Convert what JSON text was parsed into. Raises msgspec.ValidationError."""
    if kind not in _decoders:
        _complete(kind)
    return msgspec.convert(value, kind)


def complete_all(packages: Collection[str]) -> None:
    """Complete the structs of these packages that are defined by now, for a library that decodes into them itself."""
    defined = [msgspec.Struct]
    for each in defined:
        defined += each.__subclasses__()
    for each in defined:
        if each.__module__.partition(".")[0] in packages:
            _complete(each)


def _complete(kind: Any) -> msgspec.json.Decoder[Any]:
    with _completing:
        found = _decoders.get(kind)
        if found is None:
            found = _decoders[kind] = msgspec.json.Decoder(kind)
        return found
