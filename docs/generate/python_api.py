"""docs/reference/python.md, from the public names of lora_reg: signatures and docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from docs.generate.markdown import NOTE, block, code, document, table

_WIDTH: Final = 100


class _Verbatim(str):
    """Text that stands in a signature as it is; repr() puts quotes around a plain string."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def page() -> str:
    return document(_lines())


def _lines() -> Iterator[str]:
    import lora_reg

    yield "# Python API"
    yield ""
    yield NOTE
    yield ""
    yield from _prose(lora_reg.__doc__ or "")
    yield "\nErrors are `RegistryError`s, with a `code` of [the table](errors.md)."
    for name in lora_reg.__all__:
        if name == "__version__":
            continue
        value = getattr(lora_reg, name)
        yield f"\n## {name}"
        yield from _class(name, value) if inspect.isclass(value) else _function(name, value)


def _function(name: str, function: Callable[..., Any]) -> Iterator[str]:
    yield from block(_signature(name, function), "python")
    yield from _prose(inspect.getdoc(function) or "")


def _class(name: str, cls: type) -> Iterator[str]:
    fields = _fields(cls)
    if not fields:
        yield from block(_signature(name, cls, bound=True), "python")
    yield ""
    yield from _prose(_own_doc(cls))
    yield from table(["field", "type", "default"], fields)
    for attribute, member in vars(cls).items():
        if attribute.startswith("_"):
            continue
        if isinstance(member, property):
            annotation = inspect.signature(member.fget).return_annotation if member.fget else ""
            yield f"\n### {name}.{attribute}: {code(str(annotation))}\n"
            yield from _prose(inspect.getdoc(member) or "")
        elif inspect.isfunction(member) or isinstance(member, classmethod | staticmethod):
            yield f"\n### {name}.{attribute}"
            bound = getattr(cls, attribute)
            yield from block(_signature(attribute, bound, bound=inspect.isfunction(member)), "python")
            yield from _prose(inspect.getdoc(member) or "")


def _own_doc(cls: type) -> str:
    """The docstring as written; dataclasses without one get their signature as a docstring."""
    text = cls.__doc__ or ""
    return "" if text.startswith(f"{cls.__name__}(") else inspect.cleandoc(text)


def _fields(cls: type) -> list[tuple[str, str, str]]:
    if dataclasses.is_dataclass(cls):
        return [
            (code(one.name), code(str(one.type)), _default(one.default, dataclasses.MISSING))
            for one in dataclasses.fields(cls)
        ]
    if issubclass(cls, msgspec.Struct):
        annotations = {name: str(kind) for base in reversed(cls.__mro__) for name, kind in _annotations(base).items()}
        return [
            (code(one.name), code(annotations[one.name]), _default(one.default, msgspec.NODEFAULT))
            for one in msgspec.structs.fields(cls)
        ]
    return []


def _annotations(cls: type) -> dict[str, Any]:
    return inspect.get_annotations(cls)


def _default(value: Any, missing: Any) -> str:
    return "" if value is missing else code(repr(value))


def _signature(name: str, function: Callable[..., Any], *, bound: bool = False) -> str:
    """One line if it fits, else a line for each parameter."""
    signature = inspect.signature(function)
    parameters = [
        one.replace(annotation=_annotation(one.annotation), default=_shown(one.default))
        for one in signature.parameters.values()
        if not (bound and one.name == "self")
    ]
    returns = inspect.Signature.empty if inspect.isclass(function) else _annotation(signature.return_annotation)
    signature = inspect.Signature(parameters, return_annotation=returns)
    line = f"{name}{signature}"
    if len(line) <= _WIDTH:
        return line
    returned = str(signature.replace(parameters=[])).removeprefix("()")
    texts, keyword_only = [], False
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            texts.append("*")
        texts.append(str(one))
    return "\n".join([f"{name}(", *(f"    {text}," for text in texts), f"){returned}"])


def _annotation(value: Any) -> Any:
    return _Verbatim(value) if isinstance(value, str) else value


def _shown(default: Any) -> Any:
    """A default without the address that object's own repr() has."""
    return _Verbatim(f"{type(default).__name__}()") if type(default).__repr__ is object.__repr__ else default


def _prose(text: str) -> Iterator[str]:
    """A docstring: indented paragraphs are code."""
    for paragraph in re.split(r"\n\n(?! {4})|(?<!\n)\n\n(?= {4})", inspect.cleandoc(text)):
        if paragraph.startswith("    "):
            yield from block(inspect.cleandoc("\n" + paragraph), "python")
        else:
            yield paragraph
            yield ""
