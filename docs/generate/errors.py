"""docs/reference/errors.md, from the table of error codes."""

from __future__ import annotations

from collections.abc import Iterator

from docs.generate.markdown import NOTE, code, document, table
from lora_contract.errors import ERRORS

_EXITS = {
    0: "done",
    1: "another failure",
    2: "wrong usage",
    3: "not found",
    4: "not signed in or not allowed",
    5: "conflict: the tag moved, the name exists, the tag is protected",
    6: "refused by a check, a policy or a gate",
    7: "integrity: a digest, size or signature does not match",
    8: "still pending when the wait ended",
    9: "rate or quota",
    10: "server or storage unavailable",
    130: "interrupted",
}


def page() -> str:
    return document(_lines())


def _lines() -> Iterator[str]:
    yield "# Errors"
    yield ""
    yield NOTE
    yield ""
    yield "A failed request is answered with an RFC 9457 problem document (`application/problem+json`). Its `code`"
    yield "is in the table, its `detail` says what was found and what was expected, and its `hint` says what to do; a"
    yield "more specific hint may replace the one below. The command line prints both sentences and ends with the"
    yield "exit status of the row; with `--json` it prints the problem document. In Python it is"
    yield "`lora_reg.RegistryError`, with `code`, `detail`, `hint` and `facts`. *Retryable* requests may be repeated."
    yield from table(
        ["code", "HTTP", "exit", "retryable", "hint"],
        (
            [code(name), str(kind.status), str(kind.exit), "yes" if kind.retryable else "", kind.hint]
            for name, kind in sorted(ERRORS.items())
        ),
    )
    yield "## Exit statuses"
    yield from table(["status", "meaning"], ([str(status), meaning] for status, meaning in _EXITS.items()))
