"""Merge adapters with the head of a task into bases without it, and compare with the adapted model.

`python -m tests.architectures.heads` runs a class of each form of a head and writes `docs/heads.md`; with `all`, or names
of classes, it runs those and prints what came out.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from transformers.models.auto import modeling_auto

from lora_contract.errors import RegistryError
from lora_contract.heads import head_table
from lora_kernels.merging import merge_folder
from tests.architectures.sweep import (
    NotCovered,
    example_of,
    linear_layers,
    one_line,
    other_outputs,
    other_parameters,
    save,
)

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "heads.md"
LABELS: Final = 3
_COMMON: Final = ("model", "transformer")
_BASES: Final = ("PRETRAINING", "CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT")
_INTRODUCTION: Final = """\
# Heads of tasks

What a merge gives of an adapter that brings a head: LoRA on the linear layers of a tiny random model of the class, with
`task_type` set, saved by PEFT, merged into a base of the same model type without the head
(`python -m tests.architectures.heads` writes this page; a test compares it). Of the classes whose heads have the same
parameters, one is listed: {classes} classes have {forms} forms. The words mean what they mean in [Architectures](architectures.md). *refused: nobody has ...*: the class has a part that the base lacks and PEFT does not
save with adapters of the task, so that the trained model cannot be restored from the adapter.

{counts}

| class | task | base | merge |
|---|---|---|---|
"""


def cases() -> dict[tuple[str, str], str]:
    """(task, class), each with a model type."""
    found: dict[tuple[str, str], str] = {}
    for task, types in head_table().tasks.items():
        for model_type, names in types.items():
            for name in names:
                found.setdefault((task, name), model_type)
    return found


def forms() -> dict[tuple[str, str], str]:
    """One case of each form of a head: classes whose heads have the same parameters are merged alike, but for those of
    question answering, some of which give the model another prefix than the class without the head."""
    seen, found = set(), {}
    for (task, name), model_type in sorted(cases().items()):
        known = head_table().classes[name]
        form = task, known.prefix if known.prefix in _COMMON else "", known.head, known.labels
        if form not in seen:
            seen.add(form)
            found[task, name] = model_type
    return found


def base_of(name: str, model_type: str) -> str:
    """A class without the head and with the same kind of config; the class itself if there is none."""
    wanted = getattr(transformers, name).config_class
    for mapping in _BASES:
        names = getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").get(model_type)
        if names:
            found = names if isinstance(names, str) else names[0]
            # From the config of a part, a model with several parts would have the others in their full size.
            if getattr(transformers, found).config_class is wanted:
                return found
    return name


def head_outcome(task: str, name: str, model_type: str, folder: Path) -> str:
    """`equal`, `refused: …`, `wrong: …` or `not covered: …`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            save(getattr(transformers, base_of(name, model_type)), model_type, folder / "base")
            kind = getattr(transformers, name)
            torch.default_generator.manual_seed(4)
            model = kind.from_pretrained(folder / "base", dtype=torch.float32, **_labelled(task)).eval()
            adapted = _adapted(task, name, model, folder / "adapter")
        except Exception as error:
            return f"not covered: {one_line(error)}"
        try:
            merge_folder(folder / "base", [(folder / "adapter", 1.0)], folder / "out", min_kept=None)
        except RegistryError as error:
            return f"refused: {error.code}: {error.detail}"
        merged = kind.from_pretrained(folder / "out", dtype=torch.float32).eval()
        fault = other_parameters(adapted, merged, model)
        example = example_of(model)
        if fault is None and example is not None:
            fault = other_outputs(adapted, merged, *example)
        if fault is not None:
            return f"wrong: {fault}"
        return "equal" if example is not None else "equal (weights)"


def _labelled(task: str) -> dict[str, Any]:
    return {} if task == "QUESTION_ANS" else {"num_labels": LABELS}


def _adapted(task: str, name: str, model: Any, folder: Path) -> Any:
    heads = tuple({part.rpartition(".")[0] for part in head_table().classes[name].head})
    targets = [path for path in linear_layers(model) if not path.startswith(heads) and path not in heads]
    if not targets:
        raise NotCovered("no linear layer")
    torch.default_generator.manual_seed(1)
    settings = LoraConfig(r=2, lora_alpha=3, target_modules=targets, task_type=TaskType(task))
    adapted = get_peft_model(copy.deepcopy(model), settings).eval()
    for part, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.normal_(0, 0.3 if "lora_" in part else 0.05)
    adapted.create_or_update_model_card = lambda _folder: None
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted.base_model.model


def cell(outcome: str) -> str:
    if "which neither the adapter nor the base has" in outcome:
        return f"refused: nobody has {outcome.partition(' has ')[2].partition(', which')[0]}"
    text = outcome.replace("|", "/")
    return text if len(text) <= 100 else f"{text[:97]}..."


def line(task: str, name: str, model_type: str, outcome: str) -> str:
    return f"| {name} | {task} | {base_of(name, model_type)} | {cell(outcome)} |"


def render(found: Mapping[tuple[str, str], str]) -> str:
    counted = Counter(outcome.partition(":")[0].partition(" (")[0] for outcome in found.values())
    counts = f"{len(found)} classes: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counted.items())) + "."
    rows = [line(task, name, cases()[task, name], outcome) for (task, name), outcome in sorted(found.items())]
    return _INTRODUCTION.format(counts=counts, classes=len(cases()), forms=len(forms())) + "\n".join(rows) + "\n"


def swept(names: Mapping[tuple[str, str], str]) -> Iterator[tuple[tuple[str, str], str]]:
    for (task, name), model_type in names.items():
        with tempfile.TemporaryDirectory() as folder:
            yield (task, name), head_outcome(task, name, model_type, Path(folder))


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = sys.argv[1:]
    wanted = {case: kind for case, kind in cases().items() if case[1] in names or names == ["all"]} or forms()
    found = {}
    for case, outcome in swept(wanted):
        found[case] = outcome
        print(*case, outcome, flush=True)
    print(dict(Counter(outcome.partition(":")[0] for outcome in found.values())))
    if names or any(outcome.startswith("wrong") for outcome in found.values()):
        return
    DOCUMENT.write_text(render(found), encoding="utf-8")


if __name__ == "__main__":
    main()
