"""Write the table of architectures from the installed transformers: `python -m tests.architectures.generate`."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import transformers

from tests.architectures.describe import describe
from tests.architectures.tiny import every_class

TABLE = Path(__file__).parents[2] / "client" / "lora_contract" / "architectures.json"


def row(name: str, model_type: str) -> dict[str, Any] | None:
    """Of the tiny model, or of the default one, which takes longer, if there is no tiny one."""
    try:
        return describe(name, model_type)
    except Exception:
        return describe(name, model_type, shrink=False)


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    rows: dict[str, dict[str, Any]] = {}
    untied: list[str] = []
    for name, model_type in sorted(every_class().items()):
        try:
            found = row(name, model_type)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}".splitlines()[0][:160], file=sys.stderr)
            continue
        if found is None:
            untied.append(name)
        else:
            rows[name] = found
    TABLE.write_text(render(rows, untied), encoding="utf-8")


def render(rows: dict[str, dict[str, Any]], untied: list[str]) -> str:
    """The table as JSON, one class a line."""
    lines = ",\n".join(f'"{name}":{json.dumps(found, separators=(",", ":"))}' for name, found in sorted(rows.items()))
    names = ",\n".join(f'"{name}"' for name in sorted(untied))
    return f'{{"transformers":"{transformers.__version__}",\n"architectures":{{\n{lines}}},\n"untied":[\n{names}]}}\n'


if __name__ == "__main__":
    main()
