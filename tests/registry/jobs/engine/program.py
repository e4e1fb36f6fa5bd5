"""Worker processes of the tests: `python -m tests.registry.jobs.engine.program URL OPTIONS`.

OPTIONS is the JSON of a worker's arguments, and of the fault it meets under "fault". A list of such makes several
workers, forked from here, which saves their imports; their exit statuses are written as JSON.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from typing import Any

from lora_registry.db.engine import make_engine
from lora_registry.jobs.engine.worker_process import run_worker
from lora_registry.runtime import faults
from tests.registry.jobs.engine.handlers import HANDLERS


def work(url: str, options: dict[str, Any]) -> None:
    if fault := options.pop("fault", None):
        os.environ[faults.ENV] = fault
        importlib.reload(faults)  # it is read at import; functions that were imported before see the new value
    run_worker(make_engine(url), HANDLERS, **options)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    url, options = sys.argv[1], json.loads(sys.argv[2])
    if isinstance(options, dict):
        work(url, options)
    children = []
    for each in options:
        pid = os.fork()
        if pid == 0:
            work(url, each | {"parent_pid": os.getppid()})
        children.append(pid)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]))
