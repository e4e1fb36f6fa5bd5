"""The child processes of a worker: start one, forward its reports, and raise a clear error if it fails."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from lora_registry.processes.process import Process, execute
from lora_registry.processes.stream import JobSink, Stream, child_error, exit_error
from lora_registry.processes.warm import Template
from lora_registry.runtime.faults import fault_point

_LINGER: Final = 10.0

_NOT_FOR_CHILDREN: Final = ("LORA_REG_CONFIG", "LORA_REG_DATABASE_URL", "LORA_REG_TOKEN", "PG")
"""Prefixes of variables that name the database and may hold its password. A worker passes all other settings as
variables, even those from a file."""


class Children:
    """The child processes of this worker. `stop()` kills them all; no step continues after that.

    groups: modules whose functions run in children, with their imports. A group has one warm process, started for its
    first child; a module outside all groups has its own.
    """

    def __init__(self, groups: Sequence[Sequence[str]] = ()) -> None:
        self._groups = [tuple(group) for group in groups]
        self._templates: dict[tuple[str, ...], Template] = {}
        self._lock = threading.Lock()
        self._running: set[Process] = set()
        self._starting = 0
        self._stopping = False
        # With no reference to this object left, nothing can ask its templates for a child.
        weakref.finalize(self, _close_all, self._templates)

    def run(self, *, name: str, target: str, spec: dict[str, Any], sink: JobSink, timeout: float | None) -> Any:
        """Run `module:function` in a child process and return its result.

        Call it from the thread of the step: the child may be tied to the life of that thread.
        timeout: seconds, None for no limit. Raises the RegistryError of the function, or `job-failed` with
        `reason` (signal, exit, timeout, unreadable, memory) if the process ended without a result.
        """
        process = self._start(target.partition(":")[0], sink.alive)
        fault_point(f"jobs.child.{name}.started")
        stream = Stream(process, sink)
        try:
            process.send({"target": target, "spec": spec})
            outcome = stream.follow(timeout=timeout)
            if outcome is not None:
                process.wait_until_ended()  # exit handlers may have something to write
        finally:
            with self._lock:
                self._running.discard(process)
            process.kill()
            status = process.reap()
            stream.close()
            with self._lock:
                stopping = self._stopping
            if stopping:
                _block_forever()
        if stream.tail:
            sink.log(stream.tail.decode(errors="replace").strip())
        if outcome is None:
            raise exit_error(name, status, stream.tail)
        if "error" in outcome:
            raise child_error(outcome["error"])
        return outcome["result"]

    def preload(self) -> None:
        """Start the warm processes of all groups; return immediately."""
        for group in self._groups:
            self._template(group[0])

    def templates(self) -> list[int]:
        """Return the process ids of the warm processes."""
        with self._lock:
            return [template.pid for template in self._templates.values() if template.pid is not None]

    def stop(self) -> None:
        """Kill all children and wait until they are dead. Their steps never return, so nothing is recorded for them."""
        with self._lock:
            self._stopping = True
            running = list(self._running)
            for process in running:
                process.kill()
            for template in self._templates.values():
                template.kill()  # so that it forks no more children
        deadline = time.monotonic() + _LINGER
        while self._starting and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in running:
            process.wait_until_ended()

    def _start(self, module: str, waiting: Callable[[], None]) -> Process:
        with self._lock:
            stopping = self._stopping
            self._starting += not stopping
        if stopping:
            _block_forever()
        try:
            template = self._template(module)
            process = None if template is None else template.fork(waiting)
            with self._lock:
                stopping = self._stopping
                if process is None and not stopping:
                    process = execute(_environment())
                if process is not None and not stopping:
                    self._running.add(process)
            if stopping and process is not None:
                process.kill()
                process.reap()
                process.close()
        finally:
            with self._lock:
                self._starting -= 1
        if stopping or process is None:
            _block_forever()
        return process

    def _template(self, module: str) -> Template | None:
        """Return None if children of this module must be started without a template."""
        modules = next((group for group in self._groups if module in group), (module,))
        with self._lock:
            if self._stopping:
                return None
            template = self._templates.get(modules)
            if template is not None and template.failed_at_start:
                return None
            if template is None or template.failed:
                template = self._templates[modules] = Template(modules, _environment())
            return template


def _environment() -> Mapping[str, str]:
    """The worker's environment, without what a child must not see."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_CHILDREN)}
    return {**kept, "HF_HUB_OFFLINE": "1"}


def _close_all(templates: Mapping[tuple[str, ...], Template]) -> None:
    for template in templates.values():
        template.close()


def _block_forever() -> NoReturn:
    """Block until this process ends: the step must be recorded neither as done nor as failed."""
    while True:
        time.sleep(3600)
