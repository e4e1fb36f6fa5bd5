"""Client side of the job engine, for the service, which never runs jobs itself."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from dbos import (
    DBOS,
    DBOSClient,
    DBOSPortableJSONSerializer,
    EnqueueOptions,
    PortableWorkflowError,
    SQLAlchemyDatasource,
)
from dbos import error as dbos_error
from sqlalchemy import Engine, bindparam, create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from lora_contract.errors import RegistryError
from lora_registry.db.session import raising_unavailable
from lora_registry.jobs.engine.ended import EngineRows
from lora_registry.jobs.engine.kinds import JobKind, SpecT
from lora_registry.jobs.engine.names import APPLICATION, APPLICATION_VERSION, PROGRESS_STREAM, from_portable
from lora_registry.jobs.engine.port import TERMINAL, JobStatus, ProgressRecord, Queue, State
from lora_registry.runtime.typed import encode

_STATES: Final[dict[str, State]] = {
    "DELAYED": "queued",
    "ENQUEUED": "queued",
    "PENDING": "running",
    "SUCCESS": "done",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}
_POLL_SECONDS: Final = 0.2
_MIGRATE_SECONDS: Final = 30.0


def migrate(url: str) -> None:
    """Create or upgrade the engine's own tables; neither the client nor a worker does so.

    On PostgreSQL they are in the schema `dbos`; on SQLite in our file, without a prefix, and Alembic's environment
    lists them in order to skip them. Several processes may call this at once.
    """
    if url.startswith("sqlite"):
        _enable_wal(url)
    DBOS.migrate(url)
    SQLAlchemyDatasource.migrate(url)


def _enable_wal(url: str) -> None:
    """Switch the file to WAL mode. SQLite ignores its busy timeout here, so retry while the file is busy."""
    engine = create_engine(url)
    deadline = time.monotonic() + _MIGRATE_SECONDS
    while True:
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            break
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
    engine.dispose()


class DbosEngine:
    """`JobEngine` on DBOS. Connects on first use; `migrate` must have run.

    database: SQLAlchemy URL (`sqlite:////path/file.db` or `postgresql+psycopg://…`), or an engine, whose URL is used.
    DBOS opens its own connections: on SQLite its reads must not take the write lock, as ours do.
    """

    def __init__(self, database: str | Engine) -> None:
        url = database if isinstance(database, str) else database.url.render_as_string(hide_password=False)
        self._sqlite = make_url(url).get_backend_name() == "sqlite"
        self.rows = EngineRows(sqlite=self._sqlite)
        self._own_engine = None if isinstance(database, Engine) else create_engine(url)
        self._engine = database if isinstance(database, Engine) else self._own_engine
        self._client = DBOSClient(
            system_database_url=url,
            application_name=APPLICATION,
            serializer=DBOSPortableJSONSerializer(),
            lazy=True,
            retry_connection_errors=False,
        )

    def enqueue(
        self,
        session: Session,
        kind: JobKind[SpecT],
        spec: SpecT,
        *,
        job_id: str,
        queue: Queue = "cpu",
    ) -> None:
        options: EnqueueOptions = {
            "workflow_name": kind.name,
            "workflow_id": job_id,
            "queue_name": queue,
            "app_version": APPLICATION_VERSION,
            "priority": kind.priority,
            # DBOS drops the queue of a cancelled job.
            "attributes": {"queue": queue},
        }
        try:
            self._client.enqueue_in_transaction(session, options, encode(spec))
        except dbos_error.DBOSConflictingWorkflowError as error:
            raise RegistryError(
                "conflict", f"The job {job_id} already exists, but its kind is not {kind.name}."
            ) from error

    def status(self, job_id: str) -> JobStatus | None:
        with raising_unavailable():
            found = self._client.list_workflows(workflow_ids=[job_id], load_input=False)
        return _status(found[0]) if found else None

    def list(
        self, *, kind: str | None = None, state: State | None = None, limit: int = 100, before: float | None = None
    ) -> list[JobStatus]:
        filters: dict[str, Any] = {"sort_desc": True, "load_input": False}
        if kind is not None:
            filters["name"] = kind
        if state is not None:
            filters["status"] = [name for name, ours in _STATES.items() if ours == state]
        end = None if before is None else _timestamp(round(before * 1000) - 1)
        with raising_unavailable():
            found = self._client.list_workflows(limit=limit, end_time=end, **filters)
            if len(found) == limit and found[-1].created_at is not None:
                # Jobs of the same millisecond stay on one page: the next page begins strictly before it.
                last = _timestamp(found[-1].created_at)
                seen = {each.workflow_id for each in found}
                ties = self._client.list_workflows(start_time=last, end_time=last, **filters)
                found.extend(each for each in ties if each.workflow_id not in seen)
        return [_status(each) for each in found]

    def cancel(self, job_id: str) -> None:
        if self._known(job_id).state in TERMINAL:
            return
        with raising_unavailable():
            self._client.cancel_workflow(job_id)

    def follow(self, job_id: str, offset: int = 0, timeout: float | None = None) -> Iterator[ProgressRecord]:
        values = self._client.read_stream(
            job_id, PROGRESS_STREAM, offset=offset, polling_interval_sec=_POLL_SECONDS, timeout_seconds=timeout
        )
        with raising_unavailable():
            try:
                for value in values:
                    yield ProgressRecord(offset=offset, **value)
                    offset += 1
            except dbos_error.DBOSStreamTimeoutError:
                return
            except dbos_error.DBOSNonExistentWorkflowError as error:
                raise _unknown(job_id) from error

    def retry(self, job_id: str) -> None:
        status = self._known(job_id)
        if status.state not in ("failed", "cancelled"):
            raise RegistryError("conflict", f"The job {job_id} is {status.state}, neither failed nor cancelled.")
        with raising_unavailable():
            steps = self._client.list_workflow_steps(job_id)
            failed = [step["function_id"] for step in steps if step["error"] is not None]
            start_step = min(failed, default=max((step["function_id"] for step in steps), default=0) + 1)
            self._forget_failed_transactions(job_id, start_step)
            try:
                self._client.rewind_workflow(
                    job_id, start_step=start_step, application_version=APPLICATION_VERSION, queue_name=status.queue
                )
            except dbos_error.DBOSException as error:
                raise RegistryError("conflict", f"The job {job_id} was already restarted by another caller.") from error

    def close(self) -> None:
        self._client.destroy()
        if self._own_engine is not None:
            self._own_engine.dispose()

    def _known(self, job_id: str) -> JobStatus:
        status = self.status(job_id)
        if status is None:
            raise _unknown(job_id)
        return status

    def _forget_failed_transactions(self, job_id: str, start_step: int) -> None:
        # The client's rewind ignores this table. Rows of committed transactions stay, whatever failed later: their
        # writes must not be repeated.
        assert self._engine is not None
        table = "datasource_outputs" if self._sqlite else "dbos.datasource_outputs"
        statement = text(
            f"DELETE FROM {table} WHERE workflow_id = :job AND step_id >= :begin AND error IS NOT NULL"
        ).bindparams(bindparam("job", job_id), bindparam("begin", start_step))
        with self._engine.begin() as connection:
            connection.execute(statement)


def _status(found: Any) -> JobStatus:
    error, code, hint = None, None, None
    if found.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
        error, code = f"Its worker died {found.recovery_attempts} times.", "job-failed"
    elif isinstance(found.error, PortableWorkflowError):
        failure = from_portable(found.error)
        error, code, hint = failure.detail, failure.code, failure.hint
    elif found.error is not None:
        error, code = str(found.error), "job-failed"
    return JobStatus(
        id=found.workflow_id,
        kind=found.name,
        state=_STATES[found.status],
        queue=(found.attributes or {}).get("queue") or found.queue_name or "",
        created_at=found.created_at / 1000,
        updated_at=found.updated_at / 1000,
        worker=found.executor_id,
        error=error,
        error_code=code,
        error_hint=hint,
        attempts=found.recovery_attempts or 0,
        result=found.output,
    )


def _timestamp(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def _unknown(job_id: str) -> RegistryError:
    return RegistryError("not-found", f"There is no job {job_id}.", hint="Check the id with `lora-reg job list`.")
