"""Repositories, versions, tags and signatures as lines. Pure; the output escapes what comes from a server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from lora_contract.wire.repositories import RepositoryView, VersionRef, VersionView
from lora_contract.wire.signatures import SignatureView
from lora_contract.wire.tags import TagEvent, TagView
from lora_reg.formatting.text import Word, fields, indented, plural, short, size, table, when

_FACTS: Final = {"base": "base as configured"}


def name_of(version: VersionView | VersionRef) -> str:
    """`namespace/name:vN`, which always names this version."""
    return f"{version.namespace}/{version.name}:v{version.number}"


def label(version: VersionView | VersionRef) -> str:
    return f"{name_of(version)}  {short(version.digest)}"


def version(view: VersionView) -> list[str]:
    lines = [f"{label(view)}  {view.kind}"]
    lines += fields(
        [
            ("yanked", Word(view.yanked, "warning") if view.yanked else None),
            ("base", label(view.base) if view.base else None),
            ("tags", ", ".join(view.tags)),
            ("message", view.message),
            ("author", view.author),
            ("created", when(view.created_at)),
            ("digest", view.digest),
            ("commit", view.commit),
            ("parents", ", ".join(name_of(parent) for parent in view.parents)),
            ("weights", _weights(view)),
            *((f"meta {key}", value) for key, value in sorted(view.meta.items())),
            *((_FACTS.get(name, name.replace("_", " ")), fact(value)) for name, value in (view.facts or {}).items()),
        ]
    )
    lines.append(f"  {plural(len(view.files), 'file')}, {size(view.size)}")
    files = [(size(file.size), short(file.digest), file.path) for file in view.files]
    return lines + indented(table(("SIZE", "DIGEST", "PATH"), files), 4)


def _weights(view: VersionView) -> str | None:
    if not view.weights_absent:
        return None
    if view.weights_at is None:
        return "not stored (--manifest-only)"
    at = view.weights_at
    return f"not stored; fetched when a job needs them: hf://{at.repository}@{at.commit[:12]} of {at.endpoint}"


def signatures(found: Iterable[SignatureView]) -> list[str]:
    rows = [(one.algorithm, one.format, one.author, when(one.created_at), one.key_id) for one in found]
    return indented(table(("SIGNATURE", "FORMAT", "SENT BY", "WHEN", "KEY"), rows), 4)


def versions(views: Iterable[VersionView]) -> list[str]:
    return table(
        ("VERSION", "TAGS", "DIGEST", "CREATED", "BY", "MESSAGE"),
        [
            (
                Word(f"v{view.number} (yanked)", "warning") if view.yanked else f"v{view.number}",
                ", ".join(view.tags) or "-",
                short(view.digest),
                when(view.created_at),
                view.author,
                cut(view.message),
            )
            for view in views
        ],
    )


def repositories(views: Iterable[RepositoryView]) -> list[str]:
    return table(
        ("NAME", "KIND", "VERSIONS", "LATEST", "TAGS"),
        [
            (
                f"{view.namespace}/{view.name}",
                view.kind,
                str(view.versions),
                f"v{view.latest.number}" if view.latest else "-",
                ", ".join(f"{tag}=v{number}" for tag, number in sorted(view.tags.items())),
            )
            for view in views
        ],
    )


def repository(view: RepositoryView) -> list[str]:
    return [
        f"{view.namespace}/{view.name}  {view.kind}",
        *fields(
            [
                ("aliases", ", ".join(view.aliases)),
                ("versions", str(view.versions)),
                ("latest", label(view.latest) if view.latest else None),
                ("tags", ", ".join(f"{tag}=v{number}" for tag, number in sorted(view.tags.items()))),
                ("created", when(view.created_at)),
            ]
        ),
    ]


def tag(view: TagView) -> str:
    return f"{view.namespace}/{view.name}:{view.tag} -> v{view.version.number}  {short(view.version.digest)}" + (
        "  protected" if view.protected else ""
    )


def tags(views: Iterable[TagView]) -> list[str]:
    return table(
        ("TAG", "VERSION", "DIGEST", "UPDATED", ""),
        [
            (
                view.tag,
                f"v{view.version.number}",
                short(view.version.digest),
                when(view.updated_at),
                "protected" if view.protected else "",
            )
            for view in views
        ],
    )


def moves(events: Sequence[TagEvent]) -> list[str]:
    return table(
        ("TAG", "MOVE", "WHEN", "BY", "REASON"),
        [
            (
                event.tag,
                f"{_number(event.from_number)} -> {_number(event.to_number)}",
                when(event.at),
                event.author,
                cut(event.reason),
            )
            for event in events
        ],
    )


def _number(number: int | None) -> str:
    return "-" if number is None else f"v{number}"


def fact(value: Any) -> str | None:
    """A fact in one line. Long tables are counted; `--json` prints them in full."""
    if not value:
        return None
    match value:
        case True:
            return "yes"
        case float():
            return f"{value:g}"
        case list():
            return ", ".join(str(item) for item in value) if len(value) <= 8 else plural(len(value), "item")
        case dict() if len(value) <= 8 and all(isinstance(item, (str, int, float)) for item in value.values()):
            return ", ".join(f"{key}: {item}" for key, item in value.items())
        case dict():
            return plural(len(value), "entry").replace("entrys", "entries")
        case _:
            return str(value)


def cut(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
