"""The `JobContext` of handlers, on DBOS."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate

from dbos import DBOS, PortableWorkflowError, SQLAlchemyDatasource, StepReservation
from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_registry.db.session import raising_unavailable
from lora_registry.jobs.engine.kinds import InputT, JobKind, P, Part, ResultT
from lora_registry.jobs.engine.names import ALIVE_EVENT, PROGRESS_STREAM, from_portable, to_portable
from lora_registry.processes.child import ChildReporter
from lora_registry.processes.children import Children
from lora_registry.runtime.faults import fault_point
from lora_registry.runtime.typed import decode, encode, result_type, target_of


class DbosContext:
    """A `JobContext`: one per run of a job, used by the thread that runs it and by those that wait for its parts."""

    def __init__(
        self, *, job_id: str, kind: JobKind[Any], datasource: SQLAlchemyDatasource, isolation: str, children: Children
    ) -> None:
        self.job_id = job_id
        self.kind = kind
        self._datasource = datasource
        self._isolation = isolation
        self._children = children
        self._in_transaction = False

    def step(self, name: str, fn: Callable[P, ResultT], *args: P.args, **kwargs: P.kwargs) -> ResultT:
        kind = result_type(fn)
        result: ResultT = decode(self._step(name, lambda: encode(fn(*args, **kwargs))), kind)
        return result

    def child(self, name: str, fn: Callable[[InputT, ChildReporter], ResultT], data: InputT) -> ResultT:
        sink, target, kind = _StepSink(self, name), target_of(fn), result_type(fn)

        def work() -> Any:
            return self._children.run(name=name, target=target, spec=encode(data), sink=sink, timeout=self.kind.timeout)

        result: ResultT = decode(self._step(name, work), kind)
        return result

    def children(
        self, name: str, fn: Callable[[InputT, ChildReporter], ResultT], parts: Sequence[Part[InputT]], *, at_once: int
    ) -> list[ResultT]:
        target, kind = target_of(fn), result_type(fn)
        shared = _SharedProgress(self, name, sum(part.size for part in parts))
        failed = threading.Event()

        def run(part: Part[InputT], step: StepReservation) -> Any:
            if failed.is_set():
                return None
            label = f"{name} {part.name}"
            sink = _PartSink(shared, part.name)

            def work() -> Any:
                spec, timeout = encode(part.data), self.kind.timeout
                return self._children.run(name=label, target=target, spec=spec, sink=sink, timeout=timeout)

            try:
                return self._step(label, work, step.run)
            except BaseException:
                failed.set()
                raise

        # Drawn here, in order: a step is found again by its number, whichever ends first.
        steps = [DBOS.reserve_step() for _ in parts]
        with ThreadPoolExecutor(max(1, at_once), "part") as pool:
            running = [
                pool.submit(contextvars.copy_context().run, run, part, step)
                for part, step in zip(parts, steps, strict=True)
            ]
        found: list[ResultT] = [decode(future.result(), kind) for future in running]
        return found

    def _step(self, name: str, work: Callable[[], Any], run: Callable[..., Any] = DBOS.run_step) -> Any:
        """work: returns a JSON value, which is checkpointed. run: the engine's function that runs a step."""

        def body() -> Any:
            fault_point(f"jobs.step.{name}.before")
            result = self._with_retries(name, work)
            fault_point(f"jobs.step.{name}.after")
            return result

        try:
            result = run({"name": name}, body)
        except PortableWorkflowError as error:
            raise from_portable(error) from error
        fault_point(f"jobs.step.{name}.recorded")
        return result

    def transaction(
        self, name: str, fn: Callable[Concatenate[Session, P], ResultT], *args: P.args, **kwargs: P.kwargs
    ) -> ResultT:
        kind = result_type(fn)
        result: ResultT = decode(self._transaction(name, lambda session: encode(fn(session, *args, **kwargs))), kind)
        return result

    def _transaction(self, name: str, work: Callable[[Session], Any]) -> Any:
        def body() -> Any:
            fault_point(f"jobs.transaction.{name}.before")
            self._in_transaction = True
            try:
                result = work(self._datasource.sql_session())  # type: ignore[arg-type]  # of sessionmaker(class_=Session)
            except RegistryError as error:
                raise to_portable(error) from error
            finally:
                self._in_transaction = False
            fault_point(f"jobs.transaction.{name}.written")
            return result

        # Each attempt is a step of its own: a transaction's checkpoint cannot be written twice.
        attempt = 1
        while True:
            try:
                result = self._datasource.run_tx_step(self._options(name), body)
            except PortableWorkflowError as error:
                failure = from_portable(error)
                if not failure.kind.retryable or attempt >= self.kind.retry.attempts:
                    raise failure from error
                DBOS.sleep(self.kind.retry.delay(attempt))
                attempt += 1
            else:
                fault_point(f"jobs.transaction.{name}.recorded")
                return result

    def _options(self, name: str) -> Any:
        # A TypedDict that DBOS does not export.
        return {"name": name, "isolation_level": self._isolation}

    def progress(self, step: str, message: str, *, done: int = 0, total: int | None = None, unit: str = "") -> None:
        if self._in_transaction:
            # On SQLite the write would wait for the lock that this transaction holds.
            raise RuntimeError("progress cannot be reported from inside a transaction")
        record = {"at": time.time(), "step": step, "message": message, "done": done, "total": total, "unit": unit}
        DBOS.write_stream(PROGRESS_STREAM, record)

    def log(self, text: str) -> None:
        self.progress("log", text)

    def alive(self) -> None:
        """Send a heartbeat; raise if the job is no longer ours. An event is one row; a stream would grow."""
        DBOS.set_event(ALIVE_EVENT, time.time())

    def _with_retries(self, name: str, work: Callable[[], Any]) -> Any:
        policy = self.kind.retry
        attempt = 1
        while True:
            try:
                with raising_unavailable():
                    return work()
            except RegistryError as error:
                failure = error
                if not failure.kind.retryable or attempt >= policy.attempts:
                    raise to_portable(failure) from error
            delay = policy.delay(attempt)
            self.log(
                f"{name}: attempt {attempt} of {policy.attempts} failed: {failure.detail} Retrying in {delay:g} s."
            )
            self._wait(delay)
            attempt += 1

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            time.sleep(min(remaining, 1.0))
            self.alive()


class _SharedProgress:
    """The progress of children that run at the same time, as one. total: of all, in their unit."""

    def __init__(self, context: DbosContext, step: str, total: int) -> None:
        self.context = context
        self._step = step
        self._total = total
        self._done: dict[str, int] = {}
        self._lock = threading.Lock()

    def report(self, part: str, done: int, unit: str) -> None:
        with self._lock:  # in the order of the sums
            self._done[part] = done
            self.context.progress(self._step, part, done=sum(self._done.values()), total=self._total, unit=unit)


class _PartSink:
    """Forwards the reports of one of several children."""

    def __init__(self, shared: _SharedProgress, part: str) -> None:
        self._shared = shared
        self._part = part

    def progress(self, record: dict[str, Any]) -> None:
        self._shared.report(self._part, int(record["done"]), str(record["unit"]))

    def log(self, text: str) -> None:
        self._shared.context.log(text)

    def alive(self) -> None:
        self._shared.context.alive()


class _StepSink:
    """Forwards a child's reports under the name of its step."""

    def __init__(self, context: DbosContext, step: str) -> None:
        self._context = context
        self._step = step

    def progress(self, record: dict[str, Any]) -> None:
        self._context.progress(
            self._step,
            str(record["message"]),
            done=int(record["done"]),
            total=record["total"],
            unit=str(record["unit"]),
        )

    def log(self, text: str) -> None:
        self._context.log(text)

    def alive(self) -> None:
        self._context.alive()
