"""All tables of a PostgreSQL database as a stream: our tables and those of the job engine.

A line of JSON names tables, columns and sequences; then come the rows of each table as COPY writes them, ended by
`\\.`. No program of PostgreSQL is needed, and the tables are read as they are, whatever their columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, MetaData
from sqlmodel import SQLModel

import lora_registry.db.tables  # noqa: F401  fills the metadata
from lora_contract import decoding
from lora_contract.errors import RegistryError
from lora_registry.backup.place import lines

ENGINE_SCHEMA: Final = "dbos"
VERSIONS: Final = ("alembic_version", "dbos_migrations")
"""Tables that say which schema a database has: those of the restored database are right already."""
_END: Final = b"\\.\n"
_GROUP: Final = 256 * 1024


class _Table(msgspec.Struct, frozen=True):
    schema: str
    name: str
    columns: list[str]


class _Sequence(msgspec.Struct, frozen=True):
    schema: str
    name: str
    last: int


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    format: str = "lora-registry-postgresql/1"
    tables: list[_Table]
    sequences: list[_Sequence]


def dump(connection: Connection) -> Iterator[bytes]:
    """Yield all tables, in an order in which foreign keys allow them to be loaded.

    connection: in a transaction of REPEATABLE READ, so that all tables are of one moment.
    """
    return _grouped(_dump(connection))


def _dump(connection: Connection) -> Iterator[bytes]:
    own = connection.scalar(sa.text("SELECT current_schema()"))
    tables = _tables(connection, own, [*SQLModel.metadata.tables, VERSIONS[0]]) + _tables(connection, ENGINE_SCHEMA)
    sequences = [
        _Sequence(*row)
        for row in connection.execute(
            sa.text(
                "SELECT schemaname, sequencename, last_value FROM pg_sequences "
                "WHERE schemaname IN (:own, :engine) AND last_value IS NOT NULL"
            ),
            {"own": own, "engine": ENGINE_SCHEMA},
        )
    ]
    yield msgspec.json.encode(_Head(tables=tables, sequences=sequences)) + b"\n"
    cursor = _cursor(connection)
    for table in tables:
        with cursor.copy(f"COPY {_quoted(table)} TO STDOUT") as rows:
            yield from map(bytes, rows)
        yield _END


def load(connection: Connection, chunks: Iterable[bytes]) -> None:
    """Replace the rows of all tables, in the caller's transaction. The tables must exist.

    Raises RegistryError `corrupt` if the stream is not whole, `conflict` if a table or column does not exist.
    """
    stream = lines(chunks)
    try:
        head = decoding.decode(next(stream, b""), _Head)
    except msgspec.MsgspecError as error:
        raise RegistryError("corrupt", f"The database of the backup is malformed: {error}.") from error
    loaded = [table for table in head.tables if table.name not in VERSIONS]
    cursor = _cursor(connection)
    cursor.execute("TRUNCATE " + ", ".join(_name(table.schema, table.name) for table in loaded) + " CASCADE")
    for table in head.tables:
        if table.name in VERSIONS:
            for _ in _rows(stream, table):
                pass
            continue
        with cursor.copy(f"COPY {_quoted(table)} FROM STDIN") as target:
            for group in _grouped(_rows(stream, table)):
                target.write(group)
    if next(stream, None) is not None:
        raise RegistryError("corrupt", "The database of the backup goes on behind its last table.")
    for sequence in head.sequences:
        cursor.execute("SELECT setval(%s::regclass, %s)", (_name(sequence.schema, sequence.name), sequence.last))


def _rows(stream: Iterator[bytes], table: _Table) -> Iterator[bytes]:
    for line in stream:
        if line == _END:
            return
        yield line
    raise RegistryError("corrupt", f"The database of the backup ends within the table {table.name}.")


def _tables(connection: Connection, schema: str, names: list[str] | None = None) -> list[_Table]:
    found = MetaData()
    inspector = sa.inspect(connection)
    existing = set(inspector.get_table_names(schema=schema))
    found.reflect(connection, schema=schema, only=sorted(existing & set(names)) if names else None)
    return [
        _Table(schema, str(table.name), [str(column.name) for column in table.columns if column.computed is None])
        for table in found.sorted_tables
        if table.schema == schema
    ]


def _cursor(connection: Connection) -> Any:
    """psycopg's own cursor, in the same transaction."""
    driver: Any = connection.connection.driver_connection
    return driver.cursor()


def _quoted(table: _Table) -> str:
    columns = ", ".join(f'"{column}"' for column in table.columns)
    return f"{_name(table.schema, table.name)} ({columns})"


def _name(schema: str, name: str) -> str:
    return f'"{schema}"."{name}"'


def _grouped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Join small chunks: COPY gives one for each row."""
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size >= _GROUP:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
