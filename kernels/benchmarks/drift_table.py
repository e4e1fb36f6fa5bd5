"""The tables of docs/validation.md on merged against unmerged adapters, from `results/drift.json`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.table import RESULTS

_FORMS: Final = ("float32", "bfloat16", "float16", "nf4 base, bfloat16")


def tables(results: Path = RESULTS) -> str:
    """Return the tables, or a sentence if nothing has been measured."""
    path = results / "drift.json"
    if not path.exists():
        return "Nothing has been measured yet.\n"
    return "\n".join(_lines(json.loads(path.read_bytes()))) + "\n"


def _lines(record: dict[str, Any]) -> Iterator[str]:
    probes, versions = record["probes"], record["versions"]
    yield (
        f"Base: `examples/tiny`, a Llama of a million parameters in bfloat16. Adapters: trained on it with PEFT "
        f"{versions['peft']} for {record['steps']}"
    )
    yield (
        f"steps. Probes: {probes['texts']} held-out texts of {probes['tokens']} tokens. torch {versions['torch']}, "
        f"{record['machine']['cpu']}. *effect*: nats between the"
    )
    yield "base and the adapter. Then, for each output dtype: nats between the unmerged adapter and its merge, the"
    yield "share of tokens after which both predict the same next token, and the share of the update that was kept,"
    yield "if not all of it."
    yield ""
    yield "| adapter | effect | float32 | bfloat16 | float16 | onto NF4, bfloat16 |"
    yield "|---|---|---|---|---|---|"
    for row in record["rows"]:
        label = row["label"] + (" †" if row["biased"] else "")
        forms = " | ".join(_form(row["forms"][name]) for name in _FORMS)
        yield f"| {label} | {row['effect']:.2f} | {forms} |"
    yield ""
    yield "† on a copy of the base with attention biases, which the type needs. Types without a merged form:"
    yield ""
    yield "| types | why |"
    yield "|---|---|"
    reasons = defaultdict(list)
    for name, reason in record["unmerged"].items():
        reasons[reason].append(name)
    for reason, names in reasons.items():
        yield f"| {', '.join(names)} | {reason} |"
    yield ""
    yield from _qlora(record["qlora"])


def _qlora(record: dict[str, Any]) -> Iterator[str]:
    yield (
        f"A QLoRA adapter: rank 8 on all linear layers, trained for {record['steps']} steps over the same base in NF4"
    )
    losses = f"loss {record['loss']:.4f} (the base alone {record['base_loss']:.4f})"
    yield "(bitsandbytes, blocks of 64, double quantization). The reference is the model that was trained: the"
    yield f"dequantized base with the unmerged adapter, {losses}."
    yield ""
    yield "| served as | loss | nats from the reference | same most likely token |"
    yield "|---|---|---|---|"
    for row in record["rows"]:
        share = _share(row["top_agreement"])
        yield f"| {row['label']} | {row['loss']:.4f} | {row['divergence']:.1e} | {share} |"


def _form(form: dict[str, Any]) -> str:
    if "refused" in form:
        return f"refused: {form['refused']}"
    kept = "" if form["kept"] is None or form["kept"] > 0.995 else f", kept {100 * form['kept']:.0f} %"
    return f"{form['divergence']:.1e}, {_share(form['top_agreement'])}{kept}"


def _share(share: float) -> str:
    return "100 %" if share == 1 else f"{100 * share:.1f} %"
