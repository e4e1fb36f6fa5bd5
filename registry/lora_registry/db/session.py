"""The unit of work: the only code that commits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlmodel import Session

from lora_contract.errors import RegistryError


class Database:
    """Sessions over one engine.

    `write()` is one transaction: committed when the block ends, rolled back if it raises. `read()` takes no write
    lock; on SQLite it sees a snapshot, on PostgreSQL each statement sees the latest commits.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._reader = engine.execution_options(read_only=True)

    @contextmanager
    def write(self) -> Iterator[Session]:
        with raising_unavailable(), Session(self.engine, expire_on_commit=False) as session:
            yield session
            session.commit()

    @contextmanager
    def read(self) -> Iterator[Session]:
        with raising_unavailable(), Session(self._reader, expire_on_commit=False) as session:
            yield session


@contextmanager
def raising_unavailable() -> Iterator[None]:
    """Convert errors of a database that is away, restarting or locked to RegistryError `unavailable`."""
    try:
        yield
    except (OperationalError, PoolTimeoutError) as error:
        raise RegistryError("unavailable", "The database did not answer or is locked.") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise RegistryError("unavailable", "The connection to the database was lost.") from error
        raise
