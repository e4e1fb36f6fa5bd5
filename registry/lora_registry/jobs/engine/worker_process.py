"""The worker process: takes jobs from queues and runs their handlers until a signal stops it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NoReturn

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SQLAlchemyDatasource
from sqlalchemy import Engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import sessionmaker
from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_registry.db.engine import count_failed_connects_as_lost
from lora_registry.jobs.engine import lease_store as store
from lora_registry.jobs.engine.context import DbosContext
from lora_registry.jobs.engine.kinds import Handled
from lora_registry.jobs.engine.lease import Heartbeat, Reaper
from lora_registry.jobs.engine.lost_claims import LostClaims
from lora_registry.jobs.engine.names import APPLICATION, APPLICATION_VERSION, to_portable
from lora_registry.processes.attributes import die_with_parent
from lora_registry.processes.children import Children
from lora_registry.runtime.faults import fault_point
from lora_registry.runtime.signals import received
from lora_registry.runtime.typed import decode, encode

_log = logging.getLogger(__name__)

EXIT_LEASE_LOST: Final = 75
"""Exit status of a worker that lost its lease (EX_TEMPFAIL: start it again)."""

SPARE_CONNECTIONS: Final = 8
"""Connections for the reaper, the heartbeat and the engine itself."""

PRELOAD_AFTER: Final = 2.0
"""Seconds after a worker's start: jobs that already wait come first."""

DEFAULT_CONCURRENCY: Final[Mapping[str, int]] = {"cpu": 2, "gpu": 1}


def run_worker(
    engine: Engine,
    handlers: Sequence[Handled],
    *,
    queues: Sequence[str] = ("cpu",),
    executor_id: str | None = None,
    concurrency: Mapping[str, int] = DEFAULT_CONCURRENCY,
    lease_seconds: float = 30.0,
    beat_seconds: float = 5.0,
    reap_seconds: float = 1.0,
    poll_seconds: float = 0.3,
    parent_pid: int | None = None,
    children: Children | None = None,
    preload: bool = False,
) -> NoReturn:
    """Run jobs until SIGTERM or SIGINT; never returns. Call it in the main thread of a dedicated process.

    Args:
        engine: of our database, whose URL the job engine uses too; `migrate` must have run.
        executor_id: None gives `host/uuid`, new at each start. A fixed one resumes its jobs at once after a restart,
            and is refused with RegistryError `conflict` while another live process holds it.
        concurrency: jobs of a queue at a time in one worker; the value of the last worker to start applies to all.
        parent_pid: stop when this process, our parent, ends.
        children: the processes that steps run in; None: without warm processes.
        preload: start the warm processes soon after the start rather than for the first child.

    Exit status: 0 after a signal (another worker resumes running jobs), EXIT_LEASE_LOST if the lease was lost.
    """
    if parent_pid is not None:
        die_with_parent(parent_pid, sent=signal.SIGTERM)
    host = socket.gethostname()
    executor_id = executor_id or f"{host}/{uuid.uuid4()}"
    instance = str(uuid.uuid4())
    children = children or Children()
    stop = received(signal.SIGTERM, signal.SIGINT)

    claimed = store.claim(
        engine,
        executor_id=executor_id,
        instance=instance,
        host=host,
        queues=",".join(queues),
        lease_seconds=lease_seconds,
    )
    if not claimed:
        raise RegistryError("conflict", f"A live worker already runs as {executor_id}.")

    def on_lost(reason: str) -> None:
        _log.error("The worker stops: %s", reason)
        children.stop()
        os._exit(EXIT_LEASE_LOST)

    heartbeat = Heartbeat(
        engine,
        executor_id=executor_id,
        instance=instance,
        lease_seconds=lease_seconds,
        beat_seconds=beat_seconds,
        on_lost=on_lost,
    )
    heartbeat.start()
    # On SQLite a thread inside a transaction of ours holds the write lock and asks the engine, on another connection,
    # whether the job is still its own. With fewer connections than threads that wait for the lock, all of them stall
    # until the lock timeout of 30 seconds.
    lost = LostClaims(patience=2 * lease_seconds, requeue=_requeue)
    connections = SPARE_CONNECTIONS + 2 * len(queues) + sum(concurrency.get(queue, 1) for queue in queues)
    _launch(
        engine,
        handlers,
        executor_id=executor_id,
        children=children,
        lost=lost,
        queues=queues,
        lease_seconds=lease_seconds,
        connections=connections,
    )
    for queue in queues:
        DBOS.register_queue(
            queue,
            worker_concurrency=concurrency.get(queue, 1),
            polling_interval_sec=poll_seconds,
            on_conflict="always_update",
        )
    reaper = Reaper(
        engine,
        executor_id=executor_id,
        tick_seconds=reap_seconds,
        running=partial(_running_executors, executor_id, lost),
        recover=_recover,
    )
    reaper.start()
    _log.info("Worker %s takes jobs from %s", executor_id, ", ".join(queues))

    if preload:
        later = threading.Timer(PRELOAD_AFTER, children.preload)
        later.daemon = True
        later.start()

    stop.get()
    # DBOS's own shutdown waits for steps and then discards them. Here the children are killed, nothing is recorded for
    # their steps, and the lease is released last, so that no other worker takes over a job that still runs here.
    reaper.stop()
    children.stop()
    heartbeat.stop()
    fault_point("jobs.worker.drained")
    try:
        store.release(engine, executor_id=executor_id, instance=instance)
    except SQLAlchemyError as error:
        _log.warning("The lease could not be released and will expire: %s", error)
    os._exit(0)


def _launch(
    engine: Engine,
    handlers: Sequence[Handled],
    *,
    executor_id: str,
    children: Children,
    lost: LostClaims,
    queues: Sequence[str],
    lease_seconds: float,
    connections: int,
) -> None:
    url = engine.url.render_as_string(hide_password=False)
    serializer = DBOSPortableJSONSerializer()
    sessions = sessionmaker(class_=Session, expire_on_commit=False)
    # Around the commit, after the engine has checked that the job is still ours and before it records the step: the
    # points at which a crash could duplicate a result.
    event.listen(sessions, "before_commit", lambda _session: fault_point("jobs.transaction.checkpointed"))
    event.listen(sessions, "after_commit", lambda _session: fault_point("jobs.transaction.committed"))
    config: DBOSConfig = {
        "name": APPLICATION,
        "system_database_url": url,
        "executor_id": executor_id,
        "application_version": APPLICATION_VERSION,
        "run_migrations": False,
        "serializer": serializer,
        "use_listen_notify": False,
        "sys_db_pool_size": connections,
        # A frozen worker may hold the lock of a job's row; PostgreSQL ends its transaction when its lease has expired.
        "sys_db_idle_transaction_timeout_sec": lease_seconds,
        "log_level": "WARNING",
    }
    count_failed_connects_as_lost()
    DBOS(config=config)
    datasource = SQLAlchemyDatasource.create(
        url, engine=engine, serializer=serializer, sessionmaker=sessions, run_migrations=False
    )
    # As in the service, whose functions run here too. SQLite has only this level.
    isolation = "SERIALIZABLE" if engine.dialect.name == "sqlite" else "READ COMMITTED"
    for handled in handlers:
        _register(handled, datasource=datasource, isolation=isolation, children=children, lost=lost)
    DBOS.listen_queues(list(queues))
    DBOS.launch()


def _register(
    handled: Handled, *, datasource: SQLAlchemyDatasource, isolation: str, children: Children, lost: LostClaims
) -> None:
    kind = handled.kind

    # The engine counts only restarts.
    @DBOS.workflow(name=kind.name, max_recovery_attempts=kind.max_attempts - 1)
    def run(spec: Any) -> Any:
        assert DBOS.workflow_id is not None
        fault_point("jobs.job.started")
        context = DbosContext(
            job_id=DBOS.workflow_id, kind=kind, datasource=datasource, isolation=isolation, children=children
        )
        try:
            with lost.running(context.job_id):
                result = encode(handled.handler(context, decode(spec, kind.spec)))
        except RegistryError as error:
            raise to_portable(error) from error
        fault_point("jobs.job.finished")
        return result


def _running_executors(executor_id: str, lost: LostClaims) -> set[str]:
    # Recover only jobs of our application version; others belong to workers of that version.
    running = DBOS.list_workflows(
        status="PENDING", app_version=APPLICATION_VERSION, load_input=False, load_output=False
    )
    lost.sweep([workflow.workflow_id for workflow in running if workflow.executor_id == executor_id])
    return {workflow.executor_id for workflow in running if workflow.executor_id}


def _requeue(job_id: str) -> None:
    found = DBOS.get_workflow_status(job_id)
    if found is not None:
        DBOS.resume_workflow(job_id, queue_name=(found.attributes or {}).get("queue") or found.queue_name)


def _recover(executor_ids: list[str]) -> None:
    # The only private DBOS name in use; a test fails if it is removed. The lease module explains why it is needed.
    DBOS._recover_pending_workflows(executor_ids)
