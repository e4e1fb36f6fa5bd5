"""The revision of the schema that this code needs, and whether a database has it.

Every process of a service asks when it starts, so Alembic is not imported: that takes longer than connecting.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy import Engine

from lora_contract.errors import RegistryError
from lora_registry.db.session import raising_unavailable

NEWEST: Final = "0013"
"""The last revision under `alembic/versions`."""

_APPLIED: Final = sa.table("alembic_version", sa.column("version_num"))


def is_current(engine: Engine) -> bool:
    """True if the database has the newest revision. Raises RegistryError `unavailable` if it is away."""
    with raising_unavailable(), engine.connect() as connection:
        if not sa.inspect(connection).has_table(_APPLIED.name):
            return False
        return list(connection.scalars(sa.select(_APPLIED.c.version_num))) == [NEWEST]


def require_current(engine: Engine) -> None:
    """Raise RegistryError `unavailable` if the database does not have the newest revision."""
    if not is_current(engine):
        raise RegistryError(
            "unavailable", "The database is not at the newest schema.", hint="Run `lora-registry migrate`."
        )
