"""`lora-registry worker`: run the handlers of all kinds of jobs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, NoReturn

from lora_contract.recipe import Operation
from lora_registry.context import Context
from lora_registry.db import revision
from lora_registry.db.engine import require_connection
from lora_registry.jobs.engine.kinds import Handler, handled
from lora_registry.jobs.engine.worker_process import run_worker
from lora_registry.jobs.specs import DERIVE, DIFF, INSPECT, REPRODUCE, VALIDATE, DeriveSpec
from lora_registry.processes.children import Children
from lora_registry.settings import ServiceSettings, environment
from lora_registry.storage import local_root
from lora_registry.wiring import open_context
from lora_registry.worker import confined, housekeeping
from lora_registry.worker.handlers import derive, diff, inspect, merge, reproduce, validate, vocabulary
from lora_registry.worker.handlers.marking import marking

_CHILDREN = confined.CHILDREN
WARM = (
    tuple(_CHILDREN + name for name in ("inspect", "diff", "derive", "merge", "vocabulary")),
    (f"{_CHILDREN}validate", "lora_kernels.validating.imports"),
)
"""Modules whose functions run in children, grouped by shared imports: the first group needs no torch."""


_HANDLERS: Final[dict[Operation, Callable[[Context], Handler[DeriveSpec]]]] = {
    "merge": merge.handler,
    "resize-base": vocabulary.handler,
}
"""Of the operations whose result is no adapter."""


def work(settings: ServiceSettings, *, queues: tuple[str, ...], name: str | None, parent: int | None) -> NoReturn:
    """Run jobs until a signal stops the worker. Raises RegistryError `unavailable` if the database is not migrated."""
    os.environ.update(environment(settings))  # children of jobs read there where the data folder is
    ctx = open_context(settings)
    require_connection(ctx.db.engine)
    revision.require_current(ctx.db.engine)
    housekeeping.start(ctx)
    confined.warn()
    run_worker(
        ctx.db.engine,
        [
            handled(INSPECT, inspect.handler(ctx)),
            handled(VALIDATE, marking(ctx, validate.handler(ctx))),
            handled(DIFF, marking(ctx, diff.handler(ctx))),
            handled(REPRODUCE, marking(ctx, reproduce.handler(ctx))),
            *(
                handled(kind, marking(ctx, _HANDLERS.get(operation, derive.handler)(ctx)))
                for operation, kind in DERIVE.items()
            ),
        ],
        queues=queues,
        executor_id=name,
        lease_seconds=settings.lease_seconds,
        beat_seconds=settings.lease_seconds / 6,
        parent_pid=parent,
        children=Children(
            WARM,
            confinement=confined.limits(settings),
            serve_blobs=None if local_root(settings) is not None else confined.serving(ctx.blobs),
        ),
        preload=settings.preload,
    )
