"""Kinds of jobs and the interface of their handlers, independent of the engine and of any concrete kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeAlias, TypeVar

from sqlmodel import Session

from lora_registry.processes.child import ChildReporter

SpecT = TypeVar("SpecT")
InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retries of a step whose error is retryable (`RegistryError.kind.retryable`). Delays are in seconds.

    The defaults outlast a store or a database that is replaced by its standby: they give up after five minutes.
    """

    attempts: int = 10
    first_delay: float = 1.0
    backoff: float = 2.0
    longest: float = 60.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the failure of `attempt` (the first is 1)."""
        return min(self.longest, self.first_delay * self.backoff ** (attempt - 1))


@dataclass(frozen=True, slots=True)
class JobKind(Generic[SpecT]):
    """A kind of job.

    Args:
        name: the engine records it with each job.
        spec: the struct that a request passes to the handler.
        priority: lower numbers run first.
        timeout: of one child process, in seconds; None: no limit.
        max_attempts: starts of a job, the first included, before it fails for good: a job that kills its workers must
            end. Restarts of healthy workers count too.
    """

    name: str
    spec: type[SpecT]
    priority: int = 100
    timeout: float | None = None
    max_attempts: int = 10
    retry: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True, slots=True)
class Part(Generic[InputT]):
    """What one of several children works on. size: its share of the progress, in the unit that the child reports."""

    name: str
    data: InputT
    size: int


class JobContext(Protocol):
    """What a handler works with. A handler is a fixed sequence of named steps.

    Outside steps it must be deterministic (no clock, randomness, database or storage): after a crash it runs again
    from the start and gets the results of the finished steps. Results are checkpointed as JSON and decoded to the
    return annotation of the step's function: a struct or a JSON value.
    A step's `RegistryError` is raised as such; other exceptions of the engine (a cancelled or lost job) must propagate.
    """

    job_id: str
    kind: JobKind[Any]

    def step(self, name: str, fn: Callable[P, ResultT], *args: P.args, **kwargs: P.kwargs) -> ResultT:
        """Run `fn` and checkpoint its result. It may run more than once if the worker dies before the checkpoint."""

    def child(self, name: str, fn: Callable[[InputT, ChildReporter], ResultT], data: InputT) -> ResultT:
        """Run `fn(data, reporter)`, a module-level function, as a step in a child process.

        The process is killed when the job is cancelled or its worker dies. If it dies itself, the step fails with a
        `job-failed` that names the signal or exit status.
        """

    def children(
        self, name: str, fn: Callable[[InputT, ChildReporter], ResultT], parts: Sequence[Part[InputT]], *, at_once: int
    ) -> list[ResultT]:
        """Run `fn` on each part as `child` does, `at_once` of them at the same time. Return the results in order.

        Each part is a step of its own, `name` with the part's name, so that after a crash only unfinished ones run
        again. After a failure no further part starts; the error of the first part that failed is raised once the
        running ones have ended.
        """

    def transaction(
        self, name: str, fn: Callable[Concatenate[Session, P], ResultT], *args: P.args, **kwargs: P.kwargs
    ) -> ResultT:
        """Run `fn(session, …)`: its writes and its checkpoint are committed together, exactly once.

        `fn` may run again after a serialization failure or a crash before the commit: it must only read and write
        through the session. It must not report progress.
        """

    def progress(self, step: str, message: str, *, done: int = 0, total: int | None = None, unit: str = "") -> None:
        """Report the progress of a step. Raises if the job was cancelled, which ends the step."""

    def log(self, text: str) -> None:
        """Write a line to the job's log: a progress record with the step `log`."""


Handler: TypeAlias = Callable[[JobContext, SpecT], Any]
"""Returns a struct or a JSON value."""


@dataclass(frozen=True, slots=True)
class Handled:
    """A kind of job with its handler. Created by `handled`, whose signature requires the same spec of both."""

    kind: JobKind[Any]
    handler: Handler[Any]


def handled(kind: JobKind[SpecT], handler: Handler[SpecT]) -> Handled:
    return Handled(kind, handler)
