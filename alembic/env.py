"""Alembic's environment: uses the connection that `lora_registry.db.migrate` passes."""

from __future__ import annotations

from typing import Any

from sqlmodel import SQLModel

import lora_registry.db.tables  # noqa: F401  fills the metadata
from alembic import context

ENGINE_TABLES = frozenset(
    {
        "dbos_migrations",
        "workflow_status",
        "workflow_input",
        "workflow_output",
        "operation_outputs",
        "notifications",
        "workflow_events",
        "workflow_events_history",
        "streams",
        "queues",
        "workflow_schedules",
        "application_versions",
        "datasource_outputs",
        "dbos_datasource_migrations",
    }
)
"""Tables of the job engine, without a prefix in the same SQLite file: Alembic would drop them."""


def include_name(name: str | None, kind: str, _parents: Any) -> bool:
    return not (kind == "table" and name in ENGINE_TABLES)


def render_item(kind: str, item: Any, _context: Any) -> str | bool:
    """Render SQLModel's string type as SQLAlchemy's, so that migrations do not depend on SQLModel."""
    if kind == "type" and type(item).__name__ == "AutoString":
        return f"sa.String(length={item.length})"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    include_name=include_name,
    render_item=render_item,
    render_as_batch=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
