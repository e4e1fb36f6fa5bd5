"""Kinds of jobs and what their handlers may do. Knows no engine and no kind of work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from lora_registry.jobs.engine.port import Queue


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a step is tried whose error may pass (`RegistryError.kind.retryable`). Seconds."""

    attempts: int = 3
    first_delay: float = 1.0
    backoff: float = 2.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the failure of `attempt` (the first is 1)."""
        return self.first_delay * self.backoff ** (attempt - 1)


@dataclass(frozen=True, slots=True)
class JobKind:
    """A kind of work.

    queue: where the service enqueues it. timeout: seconds that one child process of it may take; None is no limit.
    max_attempts: how often a job is started, the first time included, before it is given up as failed: a job that kills
    its workers must end. Restarts of healthy workers count too.
    """

    name: str
    queue: Queue = "cpu"
    timeout: float | None = None
    max_attempts: int = 10
    retry: RetryPolicy = field(default_factory=RetryPolicy)


class JobContext(Protocol):
    """What a handler works with. A handler is a fixed sequence of named steps.

    Outside steps it must be deterministic: no clock, no randomness, no database, no storage, since after a crash it
    runs again from its beginning and finds the results of the finished steps. Arguments and results are JSON values.
    `RegistryError` of a step arrives as such; other exceptions of the engine (a cancelled or lost job) must pass.
    """

    job_id: str
    kind: JobKind

    def step(self, name: str, fn: Callable[..., Any], *args: Any) -> Any:
        """`fn(*args)`, its result checkpointed. It may run more than once if the worker dies before that."""

    def child(self, name: str, target: str, spec: dict[str, Any]) -> Any:
        """A step whose work, `module:function`, runs in a process of its own: `function(spec, report)`.

        `report` is a `lora_registry.processes.child.Report`. The process is killed when the job is cancelled, and with
        its worker. Its death is a `job-failed` that names the signal or exit status.
        """

    def transaction(self, name: str, fn: Callable[..., Any], *args: Any) -> Any:
        """`fn(session, *args)`: its writes and its checkpoint are committed together, exactly once.

        `fn` may run again after a serialization failure or a death before the commit: let it only read and write
        through the session. It must not report progress.
        """

    def progress(self, step: str, message: str, *, done: int = 0, total: int | None = None, unit: str = "") -> None:
        """Tell followers how far a step is. Raises where the job was cancelled: a step stops here."""

    def log(self, text: str) -> None:
        """A line for the job's log: a progress record with the step `log`."""


Handler: TypeAlias = Callable[[JobContext, dict[str, Any]], dict[str, Any]]
