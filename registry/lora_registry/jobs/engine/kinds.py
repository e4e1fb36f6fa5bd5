"""Kinds of jobs and what their handlers may do. Knows no engine and no kind of work."""

from __future__ import annotations

from collections.abc import Callable
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
    """How often a step is tried if its error may pass (`RegistryError.kind.retryable`). Delays are in seconds."""

    attempts: int = 3
    first_delay: float = 1.0
    backoff: float = 2.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the failure of `attempt` (the first is 1)."""
        return self.first_delay * self.backoff ** (attempt - 1)


@dataclass(frozen=True, slots=True)
class JobKind(Generic[SpecT]):
    """A kind of work.

    Args:
        name: the engine records it with each job.
        spec: what a request hands to the handler, a struct.
        priority: jobs with a low number run first.
        timeout: seconds that one child process of it may take; None is no limit.
        max_attempts: how often a job is started, the first time included, before it is given up as failed: a job that
            kills its workers must end. Restarts of healthy workers count too.
    """

    name: str
    spec: type[SpecT]
    priority: int = 100
    timeout: float | None = None
    max_attempts: int = 10
    retry: RetryPolicy = field(default_factory=RetryPolicy)


class JobContext(Protocol):
    """What a handler works with. A handler is a fixed sequence of named steps.

    Outside steps it must be deterministic: no clock, no randomness, no database, no storage, since after a crash it
    runs again from its beginning and finds the results of the finished steps. Results are checkpointed as JSON and
    come back as the type with which the step's function is annotated: structs, or what JSON has.
    A `RegistryError` of a step arrives as such; other exceptions of the engine (a cancelled or lost job) must pass.
    """

    job_id: str
    kind: JobKind[Any]

    def step(self, name: str, fn: Callable[P, ResultT], *args: P.args, **kwargs: P.kwargs) -> ResultT:
        """Run `fn` and checkpoint its result. It may run more than once if the worker dies before that."""

    def child(self, name: str, fn: Callable[[InputT, ChildReporter], ResultT], data: InputT) -> ResultT:
        """A step whose work, a function of a module, runs in a process of its own: `fn(data, reporter)`.

        The process is killed when the job is cancelled, and with its worker. Its death is a `job-failed` that names
        the signal or exit status.
        """

    def transaction(
        self, name: str, fn: Callable[Concatenate[Session, P], ResultT], *args: P.args, **kwargs: P.kwargs
    ) -> ResultT:
        """Run `fn(session, …)`: its writes and its checkpoint are committed together, exactly once.

        `fn` may run again after a serialization failure or a death before the commit: let it only read and write
        through the session. It must not report progress.
        """

    def progress(self, step: str, message: str, *, done: int = 0, total: int | None = None, unit: str = "") -> None:
        """Report how far a step is. Raises if the job was cancelled: a step stops here."""

    def log(self, text: str) -> None:
        """A line for the job's log: a progress record with the step `log`."""


Handler: TypeAlias = Callable[[JobContext, SpecT], Any]
"""Its result is a struct or what JSON has."""


@dataclass(frozen=True, slots=True)
class Handled:
    """A kind of jobs that a worker can run. Made by `handled`, which checks that both parts are of one spec."""

    kind: JobKind[Any]
    handler: Handler[Any]


def handled(kind: JobKind[SpecT], handler: Handler[SpecT]) -> Handled:
    return Handled(kind, handler)
