"""Write the table of heads from the installed transformers: `python -m tests.architectures.generate_heads`."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any, Final

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from tests.architectures.generate import TABLE
from tests.architectures.tiny import config_class, tiny_config

HEADS: Final = TABLE.with_name("heads.json")
TASKS: Final = {
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
}
_LABELS: Final = 7
"""A size that no other dimension of a tiny model has."""


def tasks() -> dict[str, dict[str, list[str]]]:
    """By PEFT's task and the model type, the classes that transformers has for it."""
    found: dict[str, dict[str, list[str]]] = {}
    for task, mapping in TASKS.items():
        types = found.setdefault(task, {})
        for model_type, names in getattr(modeling_auto, mapping).items():
            if model_type in CONFIG_MAPPING_NAMES:
                types[model_type] = [names] if isinstance(names, str) else list(names)
    return found


def head_row(name: str, model_type: str) -> dict[str, Any] | None:
    """The row of a class, by the parameters of a tiny model; None if its head is not on a model of its own. Raises
    whatever the class raises."""
    first = _shapes(name, model_type)
    kind = getattr(transformers, name)
    prefix = f"{kind.base_model_prefix}."
    body = dict.fromkeys(part.removeprefix(prefix).partition(".")[0] for part in first if part.startswith(prefix))
    if not body or prefix == ".":
        return None
    head = [part for part in first if not part.startswith(prefix)]
    row: dict[str, Any] = {"prefix": kind.base_model_prefix, "body": sorted(body), "head": sorted(head)}
    labels = [part for part in head if first[part][:1] == (_LABELS,)]
    if labels:
        row["labels"] = sorted(labels, key=lambda part: (-len(first[part]), part))
    return row


def _shapes(name: str, model_type: str) -> dict[str, tuple[int, ...]]:
    kind = getattr(transformers, name)
    configs = config_class(kind, model_type)
    try:
        config = tiny_config(configs)
    except Exception:
        config = tiny_config(configs, shrink=False)
    config.num_labels = _LABELS
    with torch.device("meta"):
        try:
            model = kind(config)
        except ValueError:  # a head of spans, which insists on its two numbers
            config.num_labels = 2
            model = kind(config)
    return {part: tuple(value.shape) for part, value in model.named_parameters(remove_duplicate=False)}


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    known = tasks()
    rows: dict[str, dict[str, Any]] = {}
    for types in known.values():
        for model_type, names in types.items():
            for name in names:
                if name in rows:
                    continue
                try:
                    row = head_row(name, model_type)
                except Exception as error:
                    print(f"{name}: {type(error).__name__}: {error}".splitlines()[0][:160], file=sys.stderr)
                    continue
                if row is None:
                    print(f"{name}: the head is not on a model of its own", file=sys.stderr)
                else:
                    rows[name] = row
    HEADS.write_text(render(known, rows), encoding="utf-8")


def render(known: dict[str, dict[str, list[str]]], rows: dict[str, dict[str, Any]]) -> str:
    """The table as JSON, one class a line; without classes that have no row."""
    lines = ",\n".join(f'"{name}":{_json(row)}' for name, row in sorted(rows.items()))
    kept = {
        task: {model_type: [name for name in names if name in rows] for model_type, names in sorted(types.items())}
        for task, types in known.items()
    }
    named = ",\n".join(
        f'"{task}":{_json({model_type: names for model_type, names in types.items() if names})}'
        for task, types in kept.items()
    )
    return f'{{"transformers":"{transformers.__version__}",\n"tasks":{{\n{named}}},\n"classes":{{\n{lines}}}}}\n'


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    main()
