"""How aliases of bases are compared: like names, in any case of letters."""

from __future__ import annotations

from sqlalchemy import ColumnElement, func
from sqlmodel import col

from lora_registry.db.tables import BaseAlias


def is_alias(text: str) -> ColumnElement[bool]:
    """An alias is this text. SQLite ignores the case of ASCII letters only."""
    return (col(BaseAlias.alias) == text) | (func.lower(col(BaseAlias.alias)) == text.lower())
