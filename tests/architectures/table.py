"""The table of architectures in the docs, as the sweep found it: `python -m tests.architectures.table`."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
import transformers

from tests.architectures.sweep import CASES, QUANTIZED, sweep
from tests.architectures.tiny import FAMILIES, classes

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "architectures.md"
_TITLES: Final = {
    "causal": "Causal language models",
    "masked": "Masked language models",
    "seq2seq": "Sequence to sequence",
    "multimodal": "Image, text and more to text",
    "vision": "Image classification",
    "speech": "Speech to text",
    "ctc": "CTC",
}
_INTRODUCTION: Final = """\
# Architectures

What a merge into each architecture of transformers {version} gives, found by merging adapters into a tiny random model
of it (`python -m tests.architectures.table` writes this page; a test compares it). *equal*: the merged model, loaded
from its files, has the outputs and the parameters of the adapted model that was not merged, in float32; *equal
(weights)*: the parameters alone, because no inputs could be made up. *refused*: the merge ends with an error that names
the layer (*joined or split on loading*: transformers makes it of other tensors in the files; *shared by more layers*: they cannot be separated;
*a layer is never called*: the model reads its weight, and an adapter has no effect there; *more than its rows*: the
embedding's output is normalized, and PEFT adds after that). *-*: there is no such layer. A merge that gives another
model than the one trained is a bug; none is known.

*linear*: LoRA on every linear layer but the output layer. *embedding*: LoRA on the input embedding. *output layer*:
LoRA on it. *saved module*: the input embedding in `modules_to_save`, beside LoRA on a linear layer. *linear, quantized base*: LoRA
on the linear layers of a base quantized by GPTQ, AWQ, FP8 or compressed-tensors; each architecture by one of them; equal: bit for bit the
merge into the same numbers stored plainly.

{counts}
"""
_SHORT: Final = {
    "transformers makes it of": "refused: joined or split on loading",
    "transformers joins it from": "refused: joined or split on loading",
    "which the base does not have": "refused: names differ on disk",
    "shares the weight": "refused: shared by more layers",
    "which the base ties to": "refused: shared by more layers",
    "may share its weight": "refused: not known what is tied",
    "is never called by the model": "refused: a layer is never called",
    "returns more than the rows": "refused: more than its rows",
    "but target_parameters": "refused: parameters of experts differ",
    "quantizers store its transpose": "refused: stored (in, out)",
}


def swept(names: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    for name, model_type in names.items():
        with tempfile.TemporaryDirectory() as folder:
            yield name, sweep(name, model_type, Path(folder))


def cell(outcome: str) -> str:
    """An outcome in few words."""
    if outcome.startswith("refused: "):
        return next((short for part, short in _SHORT.items() if part in outcome), outcome.replace("|", "/"))
    if outcome.startswith("not covered: no "):
        return "-"
    text = outcome.replace("|", "/")
    return text if len(text) <= 80 else f"{text[:77]}..."


def line(name: str, outcomes: Mapping[str, str]) -> str:
    return f"| {name} | {' | '.join(cell(outcomes[case]) for case in CASES)} |"


def render(found: Mapping[str, Mapping[str, str]]) -> str:
    parts = []
    seen: set[str] = set()
    for family, title in _TITLES.items():
        names = [name for name in sorted(classes(family)) if name in found and name not in seen]
        seen.update(names)
        head = (
            f"## {title}\n\n| architecture | linear | embedding | output layer | saved module |\n|---|---|---|---|---|"
        )
        parts.append("\n".join([head, *(line(name, found[name]) for name in names)]))
    return (
        _INTRODUCTION.format(version=transformers.__version__, counts=_counts(found)) + "\n" + "\n\n".join(parts) + "\n"
    )


def _counts(found: Mapping[str, Mapping[str, str]]) -> str:
    rows = [f"| {len(found)} architectures | equal | refused | not covered | no such layer |", "|---|---|---|---|---|"]
    for case in (*CASES, QUANTIZED):
        kinds = Counter(cell(outcomes[case]).partition(":")[0].partition(" (")[0] for outcomes in found.values())
        rows.append(f"| {case} | {kinds['equal']} | {kinds['refused']} | {kinds['not covered']} | {kinds['-']} |")
    return "\n".join(rows)


def every() -> dict[str, str]:
    """All architectures of the families that the sweep covers, each with a model type."""
    return {name: model_type for family in FAMILIES for name, model_type in classes(family).items()}


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = {name: every()[name] for name in sys.argv[1:]} or every()
    found = dict(swept(names))
    if len(names) < len(every()):
        print(json.dumps(found, indent=1))
        return
    wrong = {name: outcomes for name, outcomes in found.items() if any("wrong" in o for o in outcomes.values())}
    if wrong:
        sys.exit(json.dumps(wrong, indent=1))
    DOCUMENT.write_text(render(found), encoding="utf-8")


if __name__ == "__main__":
    main()
