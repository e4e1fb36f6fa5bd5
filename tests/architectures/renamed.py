"""Merge adapters with names of other versions of transformers than those in the base's files, both ways.

`python -m tests.architectures.renamed` writes `docs/renames.md`: one class of each set of transformers' rules. With
`all`, or names of classes, it runs those and prints what came out.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from lora_contract.errors import RegistryError
from lora_contract.renames import rename_table
from lora_kernels.merging import merge_folder
from tests.architectures.sweep import (
    MAX_PARAMETERS,
    Example,
    NotCovered,
    _path,
    adapt,
    example_of,
    linear_layers,
    one_line,
    other_outputs,
    other_parameters,
)
from tests.architectures.tiny import config_class, every_class, tiny_config

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "renames.md"
CASES: Final = (
    "today on older",
    "older on older",
    "today on today",
    "older on today",
    "split on older",
    "experts on older",
    "experts on today",
)
"""Names of the adapter, on names in the base's files. split: an adapter also of modules that older versions have not,
since they are joined or split there. experts: one of all experts of each layer."""
WEIGHTS: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."
_INTRODUCTION: Final = """\
# Names of older versions of transformers

transformers renames, joins and splits the tensors of many models when it loads them: an adapter trained with one version
has other names than a base saved by another. What a merge gives then, of a tiny random model of each class: LoRA on
every linear layer that is one in both, saved by PEFT under today's names (transformers {version}) and, renamed, under the older ones; the
base saved in both ways; and of one that also has layers which are not one tensor there (*split on older*: refused
with the reason); and of one of the experts of each layer, which are one tensor today (*-*: there are no such layers). `python -m tests.architectures.renamed` writes this page; a test compares it. One class is
listed of each set of rules; {classes} classes have {forms} sets of them. The words mean what they mean in
[Architectures](architectures.md).

{counts}

| class | {cases} |
|---|{lines}
"""


def renamed_classes() -> dict[str, str]:
    """The classes with rules, each with a model type."""
    known = rename_table().classes
    return {name: model_type for name, model_type in every_class().items() if name in known and known[name].parts}


def forms() -> dict[str, str]:
    """One class of each set of rules."""
    seen, found = set(), {}
    for name, model_type in sorted(renamed_classes().items()):
        rules = tuple(sorted({part.rules for part in rename_table().classes[name].parts}))
        if rules not in seen:
            seen.add(rules)
            found[name] = model_type
    return found


def sweep_names(name: str, model_type: str, folder: Path) -> dict[str, str]:
    """The outcome of each case: `equal`, `refused: …`, `wrong: …` or `not covered: …`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kind = getattr(transformers, name)
            adapted = saved_in_both(kind, model_type, folder)
            model = kind.from_pretrained(folder / "today", dtype=torch.float32).eval()
        except Exception as error:
            return dict.fromkeys(CASES, f"not covered: {one_line(error)}")
        example = example_of(model)
        return {case: _outcome(case, kind, model, adapted, example, folder) for case in CASES}


def saved_in_both(kind: Any, model_type: str, folder: Path) -> dict[str, Any]:
    """Save a base under both names and the adapters; return by their names the adapted models."""
    older = _save_both(kind, model_type, folder)
    return _train(kind.from_pretrained(folder / "today", dtype=torch.float32).eval(), older, folder)


def _train(model: Any, older: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Save the adapters, and return by their names the adapted models."""
    adapted = {}
    paths = list(linear_layers(model, _path(model, model.get_output_embeddings)))
    if model.config.model_type == "nemotron_h":  # PEFT refuses these
        paths = [path for path in paths if not path.endswith(".out_proj")]
    plain = [path for path in paths if f"{path}.weight" in older]
    if any(older[f"{path}.weight"] != f"{path}.weight" for path in plain):
        adapted["today"] = adapted["older"] = adapt(model, _settings(target_modules=plain), folder / "today-adapter")
        _rename(folder / "today-adapter", folder / "older-adapter", older)
        if len(paths) > len(plain):
            adapted["split"] = adapt(model, _settings(target_modules=paths), folder / "split-adapter")
    experts = [name for name, each in model.named_parameters() if each.dim() == 3 and ".experts." in f".{name}"]
    if experts:
        ends = sorted({".".join(name.split(".")[-2:]) for name in experts})
        adapted["experts"] = adapt(
            model, _settings(target_modules=[], target_parameters=ends), folder / "experts-adapter"
        )
    if not adapted:
        raise NotCovered("no layer has another name")
    return adapted


def _settings(**targets: list[str]) -> dict[str, Any]:
    return {"r": 2, "lora_alpha": 3, **targets}


def _save_both(kind: Any, model_type: str, folder: Path) -> dict[str, str]:
    """Save a model under both names. Return the older names of its parameters by today's."""
    config = tiny_config(config_class(kind, model_type))
    with torch.device("meta"):
        model = kind(config)
    if sum(parameter.numel() for parameter in model.parameters()) > MAX_PARAMETERS:
        raise NotCovered("too many parameters")
    older = older_names(model)
    torch.default_generator.manual_seed(0)
    model = kind(config)
    model._weight_conversions = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
    model.save_pretrained(folder / "older")
    model.save_pretrained(folder / "today", save_original_format=False)
    again = kind.from_pretrained(folder / "older", dtype=torch.float32)
    if other_parameters(model.float(), again, model) is not None:
        raise NotCovered("transformers does not read its own older names")
    return older


def older_names(model: Any) -> dict[str, str]:
    """What files of an older version call the parameters that are one tensor there too."""
    model._weight_conversions = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
    state = {name: torch.empty(1, device="meta") for name, _ in model.named_parameters()}
    plain = {name: tensor for name, tensor in state.items() if not _is_converted(model, name)}
    back = {id(tensor): name for name, tensor in revert_weight_conversion(model, dict(plain)).items()}
    return {name: back[id(tensor)] for name, tensor in plain.items() if id(tensor) in back}


def _is_converted(model: Any, name: str) -> bool:
    reverse = (each.reverse_transform() for each in model._weight_conversions if hasattr(each, "operations"))
    return any(each.rename_source_key(name)[1] is not None for each in reverse)


def _rename(folder: Path, to: Path, older: Mapping[str, str]) -> None:
    """Copy an adapter with older names."""
    to.mkdir()
    config = json.loads((folder / "adapter_config.json").read_text())
    paths = {
        new.removesuffix(".weight"): old.removesuffix(".weight")
        for new, old in older.items()
        if new.endswith(".weight") and old.endswith(".weight")
    }
    tensors, targets = {}, set()
    for name, value in load_file(folder / WEIGHTS).items():
        path, _, rest = name.removeprefix(PREFIX).partition(".lora_")
        if path not in paths:
            raise NotCovered(f"{path} has no older name")
        tensors[f"{PREFIX}{paths[path]}.lora_{rest}"] = value
        targets.add(paths[path])
    config["target_modules"] = sorted(targets)
    save_file(tensors, to / WEIGHTS, {"format": "pt"})
    (to / "adapter_config.json").write_text(json.dumps(config))


def _outcome(
    case: str, kind: Any, model: Any, adapted: Mapping[str, Any], example: Example | None, folder: Path
) -> str:
    adapter, _, base = case.partition(" on ")
    if adapter not in adapted:
        return "not covered: no such layer"
    out = folder / case.replace(" ", "-")
    try:
        merge_folder(folder / base, [(folder / f"{adapter}-adapter", 1.0)], out, min_kept=None)
    except RegistryError as error:
        return f"refused: {error.code}: {error.detail}"
    merged = kind.from_pretrained(out, dtype=torch.float32).eval()
    fault = other_parameters(adapted[adapter], merged, model)
    if fault is None and example is not None:
        fault = other_outputs(adapted[adapter], merged, *example)
        jumps = fault and other_outputs(adapted[adapter], merged_by_peft(adapted[adapter]), *example)
        if jumps:  # with the last bits of the weights, as in a detector that chooses the best of its proposals
            return "equal (weights)"
    if fault is not None:
        return f"wrong: {fault}"
    return "equal" if example is not None else "equal (weights)"


def merged_by_peft(adapted: Any) -> Any:
    merged = copy.deepcopy(adapted)
    for module in merged.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    return merged


def cell(outcome: str) -> str:
    if outcome.startswith("not covered: no such"):
        return "-"
    if outcome.startswith("refused: ") and ": transformers makes it of" in outcome:
        return "refused: made of other tensors"
    text = outcome.replace("|", "/")
    return text if len(text) <= 100 else f"{text[:97]}..."


def line(name: str, outcomes: Mapping[str, str]) -> str:
    return f"| {name} | {' | '.join(cell(outcomes[case]) for case in CASES)} |"


def render(found: Mapping[str, Mapping[str, str]]) -> str:
    rows = []
    for case in CASES:
        kinds = Counter(cell(outcomes[case]).partition(":")[0].partition(" (")[0] for outcomes in found.values())
        rows.append(f"- {case}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    head = _INTRODUCTION.format(
        version=transformers.__version__,
        classes=len(renamed_classes()),
        forms=len(forms()),
        counts="\n".join(rows),
        cases=" | ".join(CASES),
        lines="---|" * len(CASES),
    )
    return head + "\n".join(line(name, outcomes) for name, outcomes in sorted(found.items())) + "\n"


def swept(names: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    for name, model_type in names.items():
        with tempfile.TemporaryDirectory() as folder:
            yield name, sweep_names(name, model_type, Path(folder))


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = sys.argv[1:]
    wanted = {name: kind for name, kind in renamed_classes().items() if name in names or names == ["all"]} or forms()
    found = {}
    for name, outcomes in swept(wanted):
        found[name] = outcomes
        print(name, outcomes if len(set(outcomes.values())) > 1 else next(iter(outcomes.values())), flush=True)
    print(dict(Counter(o.partition(":")[0] for outcomes in found.values() for o in outcomes.values())))
    if names or any(o.startswith("wrong") for outcomes in found.values() for o in outcomes.values()):
        return
    DOCUMENT.write_text(render(found), encoding="utf-8")


if __name__ == "__main__":
    main()
