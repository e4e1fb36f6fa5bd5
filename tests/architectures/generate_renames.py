"""Write the table of renamed parameters from the installed transformers: `python -m tests.architectures.generate_renames`."""

from __future__ import annotations

import json
import warnings
from typing import Any

import transformers
from peft.utils import transformers_weight_conversion as weight_conversion
from transformers import conversion_mapping
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from tests.architectures.generate import TABLE
from tests.architectures.renames import NotTransformers, class_row, meta_model, root_row, rules_of, shared_key
from tests.architectures.tiny import every_class

RENAMES = TABLE.with_name("renames.json")


def rename_row(name: str, model_type: str) -> dict[str, Any] | None:
    """The row of a class; None if nothing is renamed in it."""
    try:
        row = class_row(meta_model(name, model_type))
    except NotTransformers:
        raise
    except Exception:  # whatever a class raises that cannot be made here
        row = root_row(name, model_type)
    for part in (row or {}).get("parts", ()):
        part[0] = shared_key(part[0])
    return row


def submodel_types() -> dict[str, str]:
    """The class that `AutoModel` has for a model type."""
    names = modeling_auto.MODEL_MAPPING_NAMES.items()
    return {model_type: found if isinstance(found, str) else found[0] for model_type, found in names}


def converted_by_peft() -> dict[str, list[str]]:
    """Model types whose LoRA adapters PEFT converts (`peft.utils.transformers_weight_conversion`)."""
    names = [kind for kind in CONFIG_MAPPING_NAMES if conversion_mapping.get_checkpoint_conversion_mapping(kind)]
    patterns, known = weight_conversion._MODEL_TO_CONVERSION_PATTERN, weight_conversion._MOE_TARGET_MODULE_MAPPING
    return {"names": sorted(names), "experts": sorted(kind for kind in names if patterns.get(kind) in known)}


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    rows: dict[str, dict[str, Any]] = {}
    for name, model_type in sorted(every_class().items()):
        row = rename_row(name, model_type)
        if row is not None:
            rows[name] = row
    RENAMES.write_text(render(rows), encoding="utf-8")


def render(rows: dict[str, dict[str, Any]]) -> str:
    """The table as JSON, one class and one rule a line; without classes and types that no rule is for."""
    types = submodel_types()
    renamed = {name for name, row in rows.items() if "parts" in row}
    keys = sorted({part[0] for row in rows.values() for part in row.get("parts", ())} | {"legacy"})
    known = ",\n".join(f'"{kind}":"{name}"' for kind, name in sorted(types.items()) if name in renamed)
    rules = ",\n".join(f'"{key}":[\n' + ",\n".join(map(_json, rules_of(key) or ())) + "]" for key in keys)
    lines = ",\n".join(f'"{name}":{_json(row)}' for name, row in sorted(rows.items()))
    version = transformers.__version__
    peft = f'"peft":{_json(converted_by_peft())}'
    return f'{{"transformers":"{version}",\n{peft},\n"rules":{{\n{rules}}},\n"types":{{\n{known}}},\n"classes":{{\n{lines}}}}}\n'


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    main()
