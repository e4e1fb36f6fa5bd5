"""python -m docs.generate: write every generated page. With --check: name the pages that differ, and exit with 1."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from docs.generate import cli, errors, kernel_costs, left_out, merging_types, python_api, rest
from lora_contract.methods.page import methods_page

DOCS: Final = Path(__file__).resolve().parents[1]
PAGES: Final[dict[str, Callable[[], str]]] = {
    "kernels.md": kernel_costs.page,
    "left-out.md": left_out.page,
    "merging-types.md": merging_types.page,
    "methods.md": methods_page,
    "reference/cli.md": cli.page,
    "reference/errors.md": errors.page,
    "reference/python.md": python_api.page,
    "reference/rest.md": rest.page,
}


def main(arguments: list[str]) -> int:
    stale = [name for name, page in PAGES.items() if _committed(name) != page()]
    if "--check" not in arguments:
        for name in stale:
            (DOCS / name).parent.mkdir(exist_ok=True)
            (DOCS / name).write_text(PAGES[name](), encoding="utf-8")
    for name in stale:
        print(f"docs/{name}")
    return 1 if stale and "--check" in arguments else 0


def _committed(name: str) -> str:
    path = DOCS / name
    return path.read_text("utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
