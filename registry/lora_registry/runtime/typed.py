"""Convert typed values to JSON and back, by the annotations of functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, get_type_hints

import msgspec

from lora_contract import decoding


def encode(value: Any) -> Any:
    """Convert structs to JSON values."""
    return msgspec.to_builtins(value)


def decode(value: Any, kind: Any) -> Any:
    """Convert JSON values to `kind`. Raises msgspec.ValidationError."""
    return decoding.convert(value, kind)


def target_of(function: Callable[..., Any]) -> str:
    """Return `module:function`, by which another process imports it. Raises TypeError if it cannot."""
    if "." in function.__qualname__ or "<" in function.__qualname__:
        raise TypeError(f"{function.__qualname__} is not a module-level function")
    return f"{function.__module__}:{function.__qualname__}"


@cache
def result_type(function: Callable[..., Any]) -> Any:
    """Return the return annotation of a function. Raises TypeError if it has none."""
    hints = get_type_hints(function)
    if "return" not in hints:
        raise TypeError(f"{function.__qualname__} has no return annotation")
    return hints["return"]


@cache
def input_type(function: Callable[..., Any]) -> Any:
    """Return the annotation of a function's first parameter."""
    return next(iter(get_type_hints(function).values()))
