"""Engines for SQLite and PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import OperationalError

from lora_contract.errors import RegistryError

BUSY_TIMEOUT_MS = 30_000
IDLE_TRANSACTION_MS = 60_000
CONNECT_SECONDS = 10


def make_engine(url: str, *, pool_size: int = 10) -> Engine:
    """Create an engine for `sqlite:///…` or `postgresql+psycopg://…`.

    On SQLite every transaction begins with BEGIN IMMEDIATE, which replaces the row locks of PostgreSQL: a deferred one
    that reads before it writes can fail with "database is locked" despite the timeout.
    """
    if not url.startswith("sqlite"):
        # A process that freezes in a transaction must not keep its row locks forever.
        options = {
            "options": f"-c idle_in_transaction_session_timeout={IDLE_TRANSACTION_MS}",
            "connect_timeout": CONNECT_SECONDS,
        }
        return create_engine(
            url, pool_size=pool_size, max_overflow=2 * pool_size, pool_pre_ping=True, connect_args=options
        )
    engine = create_engine(
        url, pool_size=pool_size, max_overflow=2 * pool_size, connect_args={"check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",  # acknowledged writes survive a power failure
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        options = connection.get_execution_options()
        if not options.get("autocommit", False):
            connection.exec_driver_sql("BEGIN" if options.get("read_only", False) else "BEGIN IMMEDIATE")

    return engine


def count_failed_connects_as_lost() -> None:
    """Mark errors of connecting as lost connections, in all engines of this process.

    The job engine repeats what failed with a lost connection, and judges by the text whether connecting failed. It
    misses a socket that refuses and a host name that is not found for a moment, and would fail the job for good.
    """
    event.listen(Engine, "handle_error", _mark_failed_connect)


def _mark_failed_connect(context: Any) -> None:
    if context.connection is None and isinstance(context.sqlalchemy_exception, OperationalError):
        context.is_disconnect = True


def require_connection(engine: Engine) -> None:
    """Connect once. Raises RegistryError `unavailable` with the database, without its password, and the reason.

    For commands only: the API must not name the database to clients.
    """
    try:
        engine.connect().close()
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0].rstrip(".") if str(error.orig).strip() else "no reason given"
        raise RegistryError(
            "unavailable",
            f"The database {engine.url.render_as_string(hide_password=True)} cannot be opened: {reason}.",
            hint="Check LORA_REG_DATABASE_URL, and that the database server is running."
            if engine.dialect.name != "sqlite"
            else "Check LORA_REG_DATA and LORA_REG_DATABASE_URL, and the permissions of the folder.",
        ) from error


def autocommitting(engine: Engine) -> Engine:
    """Return the same engine in autocommit mode: the database ends the transaction of each statement, not this process.

    For single statements that must not block others: a process that freezes or disconnects right after one leaves no
    lock behind.
    """
    if engine.dialect.name == "sqlite":
        # Not the dialect's own AUTOCOMMIT: it would let the driver begin transactions afterwards.
        return engine.execution_options(autocommit=True)
    return engine.execution_options(isolation_level="AUTOCOMMIT")
