"""The table of docs/left-out.md, from the contract's table of by-products."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from docs.generate.markdown import between, table
from lora_contract.byproducts import BYPRODUCTS, HOUSEKEEPING, ByProduct

PAGE: Final = Path(__file__).resolve().parents[1] / "left-out.md"


def page() -> str:
    """The committed page with its table written again."""
    rows = table(["what", "written by", "names"], map(_row, (*BYPRODUCTS, HOUSEKEEPING)))
    return between(PAGE.read_text("utf-8"), "by-products", list(rows))


def _row(row: ByProduct) -> tuple[str, str, str]:
    beside = f" (beside `{row.beside}`)" if row.beside else ""
    always = ", with `--strict` too" if row is HOUSEKEEPING else ""
    return row.what + always, row.by, ", ".join(f"`{name}`" for name in row.names) + beside
