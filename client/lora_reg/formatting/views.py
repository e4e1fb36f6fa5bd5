"""Wire structs as lines for people. Pure; what comes from a server is escaped by the output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from lora_contract.validation import Validation
from lora_contract.wire.jobs import JobView, ReportView
from lora_contract.wire.repositories import RepositoryView, VersionRef, VersionView
from lora_contract.wire.signatures import SignatureView
from lora_contract.wire.tags import TagEvent, TagView
from lora_reg.formatting.text import fields, plural, short, size, table, when

_FACTS = {"base": "base as configured"}


def name_of(version: VersionView | VersionRef) -> str:
    """`namespace/name:vN`: short, and never means anything else."""
    return f"{version.namespace}/{version.name}:v{version.number}"


def label(version: VersionView | VersionRef) -> str:
    return f"{name_of(version)}  {short(version.digest)}"


def version(view: VersionView) -> list[str]:
    lines = [f"{label(view)}  {view.kind}"]
    lines += fields(
        [
            ("yanked", view.yanked),
            ("base", label(view.base) if view.base else None),
            ("tags", ", ".join(view.tags)),
            ("message", view.message),
            ("author", view.author),
            ("created", when(view.created_at)),
            ("digest", view.digest),
            ("commit", view.commit),
            ("parents", ", ".join(name_of(parent) for parent in view.parents)),
            ("weights", "not stored (--manifest-only)" if view.weights_absent else None),
            *((f"meta {key}", value) for key, value in sorted(view.meta.items())),
            *((_FACTS.get(name, name.replace("_", " ")), _fact(value)) for name, value in (view.facts or {}).items()),
        ]
    )
    lines.append(f"  {plural(len(view.files), 'file')}, {size(view.size)}")
    lines += [
        f"    {line}"
        for line in table(("PATH", "SIZE", "DIGEST"), [(f.path, size(f.size), short(f.digest)) for f in view.files])
    ]
    return lines


def signatures(found: Iterable[SignatureView]) -> list[str]:
    rows = [(one.key_id, one.algorithm, one.author, when(one.created_at)) for one in found]
    return [f"    {line}" for line in table(("SIGNED BY THE KEY", "ALGORITHM", "SENT BY", "WHEN"), rows)]


def versions(views: Iterable[VersionView]) -> list[str]:
    return table(
        ("VERSION", "DIGEST", "CREATED", "BY", "TAGS", "MESSAGE"),
        [
            (
                f"v{view.number}" + (" (yanked)" if view.yanked else ""),
                short(view.digest),
                when(view.created_at),
                view.author,
                ",".join(view.tags),
                _cut(view.message),
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
                ",".join(f"{tag}=v{number}" for tag, number in sorted(view.tags.items())),
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


def moves(events: Sequence[TagEvent]) -> list[str]:
    return table(
        ("TAG", "MOVE", "WHEN", "BY", "REASON"),
        [
            (
                event.tag,
                f"{_number(event.from_number)} -> {_number(event.to_number)}",
                when(event.at),
                event.author,
                _cut(event.reason),
            )
            for event in events
        ],
    )


def job(view: JobView) -> list[str]:
    return [
        f"{view.id}  {view.kind}  {view.state}",
        *fields(
            [
                ("title", view.title),
                ("result", label(view.result) if view.result else None),
                ("error", view.error),
                ("queue", view.queue),
                ("worker", view.worker),
                ("attempts", str(view.attempts)),
                ("created", when(view.created_at)),
                ("updated", when(view.updated_at)),
            ]
        ),
    ]


def jobs(views: Iterable[JobView]) -> list[str]:
    return table(
        ("ID", "KIND", "STATE", "TITLE", "RESULT", "UPDATED"),
        [
            (
                view.id,
                view.kind,
                view.state,
                _cut(view.title),
                name_of(view.result) if view.result else "",
                when(view.updated_at),
            )
            for view in views
        ],
    )


def report(view: ReportView) -> list[str]:
    head = [f"{view.kind}  {'passed' if view.passed else 'failed'}  {short(view.version)}"]
    if view.kind == "validate":
        return [*head, *_validation(view)]
    lines = [*head]
    lines += fields(
        [
            ("report", view.id),
            ("created", when(view.created_at)),
            *((name.replace("_", " "), _fact(value)) for name, value in view.body.items()),
        ]
    )
    return lines + [f"  {finding.severity}: {finding.message}" for finding in view.findings]


def _validation(view: ReportView) -> list[str]:
    """What was measured: states of the layers, losses on each set."""
    from lora_contract.policy.evidence import looked_at

    found = msgspec.convert(view.body, Validation)
    layers = [
        (name, layer.state, layer.reason or "; ".join(f.message for f in layer.findings) or looked_at(name, layer))
        for name, layer in found.layers.items()
    ]
    losses = [
        (one.role, one.name, f"{one.base_loss:.4f}", f"{one.loss:.4f}", str(len(one.tokens)))
        for one in found.evaluations
    ]
    answers = [(one.name, f"{one.met} of {one.asked}") for one in found.answers.values()]
    parts = (
        table(("LAYER", "STATE", "WHAT WAS FOUND"), layers),
        table(("ROLE", "SET", "BASE", "LOSS", "RECORDS"), losses),
        table(("SET", "ANSWERS AS EXPECTED"), answers),
        tasks(found),
    )
    by = ", ".join(f"{name} {value}" for name, value in found.environment.items() if value)
    told = fields([("report", view.id), ("created", when(view.created_at)), ("made by", by)])
    return [*told, *(f"  {line}" for part in parts for line in part)]


def tasks(found: Validation) -> list[str]:
    """What tasks of lm-evaluation-harness measured; nothing where none was run."""
    rows = [
        (task, metric, _measured(one.base, one.base_stderr), _measured(one.value, one.stderr), str(result.records))
        for task, result in found.tasks.items()
        for metric, one in result.metrics.items()
    ]
    return table(("TASK", "METRIC", "BASE", "VALUE", "RECORDS"), rows) if rows else []


def _measured(value: float | None, error: float | None) -> str:
    told = "-" if value is None else f"{value:.4g}"
    return told if error is None else f"{told} ± {error:.2g}"


def _number(number: int | None) -> str:
    return "-" if number is None else f"v{number}"


def _fact(value: Any) -> str | None:
    """A fact in one line; long tables are counted, since `--json` has them whole."""
    match value:
        case None | False | 0 | [] | {} | "":
            return None
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


def _cut(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
