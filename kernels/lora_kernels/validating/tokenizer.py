"""Comparison of an adapter's tokenizer and chat template with those of its base.

Servers encode prompts with the base's tokenizer. An adapter that was trained with another one has learned other ids: it
loads, but generates nonsense. Files are compared as JSON and never loaded; only chat templates are rendered, sandboxed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from lora_contract import decoding
from lora_contract.errors import RegistryError
from lora_contract.findings import Finding, Severity
from lora_contract.validation import LayerResult
from lora_kernels.validating.template import render_template

MAX_BYTES: Final = 256 << 20
TOKENIZER: Final = "tokenizer.json"
CONFIG: Final = "tokenizer_config.json"
TEMPLATE: Final = "chat_template.jinja"
MODEL: Final = "tokenizer.model"

# Batch settings of trainers, and keys that are compared separately or do not affect ids.
_NOT_COMPARED: Final = frozenset({"version", "truncation", "padding", "added_tokens", "model"})
_SPECIAL: Final[dict[str, Severity]] = {
    "bos_token": "error", "eos_token": "error", "unk_token": "warning", "pad_token": "warning",
    "add_bos_token": "error", "add_eos_token": "error",
}  # fmt: skip


def tokenizer(base: Path, adapter: Path, *, rows: int, brings_embedding: bool) -> LayerResult:
    """Compare the files of both. rows: of the base's embedding. brings_embedding: the adapter has embedding rows for
    tokens that it adds."""
    findings: list[Finding] = []
    own = [name for name in (TOKENIZER, MODEL, CONFIG, TEMPLATE) if (adapter / name).is_file()]
    if (adapter / TOKENIZER).is_file() and (base / TOKENIZER).is_file():
        findings += _vocabulary(_read(base / TOKENIZER), _read(adapter / TOKENIZER), rows, brings_embedding)
    elif (adapter / MODEL).is_file() and (base / MODEL).is_file():
        if (adapter / MODEL).read_bytes() != (base / MODEL).read_bytes():
            findings.append(_differs("tokenizer-differs", "error", f"{MODEL} differs from the base's", MODEL))
    elif TOKENIZER in own or MODEL in own:
        findings.append(
            Finding("tokenizer-not-compared", "warning", "The base has no tokenizer in the format of the adapter's.")
        )
    ours, theirs = _config(base), _config(adapter)
    findings += [
        _differs(
            "special-token-differs", severity, f"{key} is {_text(theirs[key])!r}, but {_text(ours[key])!r} in the base",
            CONFIG,
        )
        for key, severity in _SPECIAL.items()
        if key in ours and key in theirs and _text(ours[key]) != _text(theirs[key])
    ]  # fmt: skip
    findings += _template(base, ours, adapter, theirs)
    failed = any(finding.severity == "error" for finding in findings)
    return LayerResult("failed" if failed else "passed", findings, {"brings": own})


def _vocabulary(base: Any, own: Any, rows: int, brings_embedding: bool) -> list[Finding]:
    ours, theirs = _ids(base), _ids(own)
    findings = []
    changed = [token for token, number in theirs.items() if token in ours and ours[token] != number]
    if changed:
        first = min(changed, key=lambda token: theirs[token])
        findings.append(
            _differs(
                "token-ids-differ",
                "error",
                f"{len(changed)} of {len(ours)} tokens have other ids than in the base: {first[:40]!r} is "
                f"{theirs[first]} instead of {ours[first]}",
                TOKENIZER,
            )
        )
    if missing := sorted(ours.keys() - theirs.keys()):
        findings.append(
            _differs(
                "tokens-missing",
                "error",
                f"{len(missing)} tokens of the base are missing: {missing[0][:40]!r}",
                TOKENIZER,
            )
        )
    if added := sorted(theirs.keys() - ours.keys(), key=lambda token: theirs[token]):
        beyond = [token for token in added if theirs[token] >= rows]
        findings.append(
            _differs(
                "tokens-without-embedding",
                "error",
                f"{len(beyond)} added tokens have no row in the base's embedding of {rows} rows or in the adapter: "
                f"{beyond[0][:40]!r} has the id {theirs[beyond[0]]}",
                TOKENIZER,
            )
            if beyond and not brings_embedding
            else Finding("tokens-added", "note", f"{len(added)} tokens were added: {added[0][:40]!r}.", TOKENIZER)
        )
    keys = sorted(key for key in {*base, *own} - _NOT_COMPARED if base.get(key) != own.get(key))
    models = (base.get("model") or {}, own.get("model") or {})
    keys += sorted(key for key in {*models[0], *models[1]} - {"vocab"} if models[0].get(key) != models[1].get(key))
    if keys:
        severity: Severity = "warning" if keys == ["decoder"] else "error"
        findings.append(
            _differs(
                "tokenizer-differs", severity, f"Text is tokenized differently: {', '.join(keys)} differ", TOKENIZER
            )
        )
    return findings


def _ids(document: Any) -> dict[str, int]:
    """Ids by token, of the model and its added tokens."""
    model = document.get("model") or {}
    vocab = model.get("vocab") or {}
    pairs = vocab.items() if isinstance(vocab, dict) else ((entry[0], number) for number, entry in enumerate(vocab))
    found = {str(token): int(number) for token, number in pairs}
    return found | {str(token["content"]): int(token["id"]) for token in document.get("added_tokens") or []}


def _template(base: Path, ours: dict[str, Any], adapter: Path, theirs: dict[str, Any]) -> list[Finding]:
    source, own = _source(base, ours), _source(adapter, theirs)
    if own is None or own == source:
        return []
    if source is None:
        return [Finding("chat-template-added", "note", "The adapter has a chat template, but the base has none.")]
    # Both get the base's special tokens: a difference of these is a separate finding.
    try:
        rendered, expected = render_template(own, ours), render_template(source, ours)
    except RegistryError as error:
        return [Finding("chat-template-not-compared", "warning", error.detail, TEMPLATE)]
    if rendered == expected:
        return []
    at = next(
        (n for n, (a, b) in enumerate(zip(rendered, expected, strict=False)) if a != b),
        min(len(rendered), len(expected)),
    )
    return [
        _differs(
            "chat-template-differs",
            "warning",
            f"Its chat template renders {rendered[at : at + 24]!r} where the base's renders {expected[at : at + 24]!r}",
            TEMPLATE,
            "Serve it with its own template; servers use the base's.",
        )
    ]


def _source(folder: Path, config: dict[str, Any]) -> str | None:
    if (folder / TEMPLATE).is_file():
        return _bytes(folder / TEMPLATE).decode("utf-8", "replace")
    stated = config.get("chat_template")
    return stated if isinstance(stated, str) else None


def _config(folder: Path) -> dict[str, Any]:
    return _read(folder / CONFIG) if (folder / CONFIG).is_file() else {}


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises RegistryError `rejected` for anything else."""
    try:
        return decoding.decode(_bytes(path), dict[str, Any])
    except msgspec.MsgspecError as error:
        raise RegistryError("rejected", f"{path.name} cannot be read: {error}.") from error


def _bytes(path: Path) -> bytes:
    if (size := path.stat().st_size) > MAX_BYTES:
        raise RegistryError("rejected", f"{path.name} has {size} bytes; at most {MAX_BYTES} are read.")
    return path.read_bytes()


def _text(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value


def _differs(code: str, severity: Severity, what: str, file: str, hint: str | None = None) -> Finding:
    hint = hint or "Train with the base's tokenizer, or push against the base that this tokenizer belongs to."
    return Finding(code, severity, f"{what}.", file, hint=hint)
