"""Values that leave a process as JSON and come back as what they were, by the annotations of functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, get_type_hints

import msgspec


def encode(value: Any) -> Any:
    """Structs as JSON values."""
    return msgspec.to_builtins(value)


def decode(value: Any, kind: Any) -> Any:
    """JSON values as `kind`. Raises msgspec.ValidationError."""
    return msgspec.convert(value, kind)


def target_of(function: Callable[..., Any]) -> str:
    """`module:function`, by which another process finds it. Raises TypeError for what it would not find."""
    if "." in function.__qualname__ or "<" in function.__qualname__:
        raise TypeError(f"{function.__qualname__} is not a function of a module")
    return f"{function.__module__}:{function.__qualname__}"


@cache
def result_type(function: Callable[..., Any]) -> Any:
    """The annotated type of a function's result. Raises TypeError if it has none."""
    hints = get_type_hints(function)
    if "return" not in hints:
        raise TypeError(f"{function.__qualname__} does not say what it returns")
    return hints["return"]


@cache
def input_type(function: Callable[..., Any]) -> Any:
    """The annotated type of a function's first parameter."""
    return next(iter(get_type_hints(function).values()))
