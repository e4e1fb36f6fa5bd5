"""The child processes of a worker: start one, pass on what it reports, and say clearly how it ended."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from lora_registry.processes.process import Process, execute
from lora_registry.processes.stream import JobSink, Stream, ended, reported
from lora_registry.processes.warm import Template
from lora_registry.runtime.faults import fault_point

_LINGER: Final = 10.0

_NOT_FOR_CHILDREN: Final = ("LORA_REG_CONFIG", "LORA_REG_DATABASE_URL", "LORA_REG_TOKEN", "PG")
"""Beginnings of variables: they name the database and may hold its password. A worker's other settings are all in
variables of their own, whatever file they came from."""


class Children:
    """The child processes of this worker. `stop()` kills them all and lets no step go on after that.

    groups: modules whose functions run in children, with what these import. A group has one warm process, started when
    its first child is; a module of no group has one of its own.
    """

    def __init__(self, groups: Sequence[Sequence[str]] = ()) -> None:
        self._groups = [tuple(group) for group in groups]
        self._templates: dict[tuple[str, ...], Template] = {}
        self._lock = threading.Lock()
        self._running: set[Process] = set()
        self._starting = 0
        self._stopping = False
        # Where nothing refers to this any more, nothing can ask its templates for a child.
        weakref.finalize(self, _end, self._templates)

    def run(self, *, name: str, target: str, spec: dict[str, Any], sink: JobSink, timeout: float | None) -> Any:
        """Run `module:function` in a process of its own and return its result.

        Must be called from the thread of the step, which may be what the child's life is tied to.
        timeout: seconds, None for no limit. Raises the RegistryError of the function, or `job-failed` with
        `reason` (signal, exit, timeout, unreadable, memory) if the process ended without one.
        """
        process = self._start(target.partition(":")[0], sink.alive)
        fault_point(f"jobs.child.{name}.started")
        stream = Stream(process, sink)
        try:
            process.send({"target": target, "spec": spec})
            outcome = stream.follow(timeout=timeout)
            if outcome is not None:
                process.let_end()  # exit handlers may have something to write
        finally:
            with self._lock:
                self._running.discard(process)
            process.kill()
            status = process.reap()
            stream.close()
            with self._lock:
                stopping = self._stopping
            if stopping:
                _park()
        if stream.tail:
            sink.log(stream.tail.decode(errors="replace").strip())
        if outcome is None:
            raise ended(name, status, stream.tail)
        if "error" in outcome:
            raise reported(outcome["error"])
        return outcome["result"]

    def preload(self) -> None:
        """Start the warm processes of all groups, and return at once."""
        for group in self._groups:
            self._template(group[0])

    def templates(self) -> list[int]:
        """Process ids of the warm processes."""
        with self._lock:
            return [one.pid for one in self._templates.values() if one.pid is not None]

    def stop(self) -> None:
        """Kill every child and see it dead. Their steps never return, so nothing is recorded for them."""
        with self._lock:
            self._stopping = True
            running = list(self._running)
            for process in running:
                process.kill()
            for template in self._templates.values():
                template.kill()  # a child that it has not forked yet is never forked
        deadline = time.monotonic() + _LINGER
        while self._starting and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in running:
            process.let_end()

    def _start(self, module: str, waiting: Callable[[], None]) -> Process:
        with self._lock:
            stopping = self._stopping
            self._starting += not stopping
        if stopping:
            _park()
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
            _park()
        return process

    def _template(self, module: str) -> Template | None:
        """None if children of the module are started without one."""
        modules = next((group for group in self._groups if module in group), (module,))
        with self._lock:
            if self._stopping:
                return None
            template = self._templates.get(modules)
            if template is not None and template.unfit:
                return None
            if template is None or template.failed:
                template = self._templates[modules] = Template(modules, _environment())
            return template


def _environment() -> Mapping[str, str]:
    """The worker's, without what a child has no business with."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_CHILDREN)}
    return {**kept, "HF_HUB_OFFLINE": "1"}


def _end(templates: Mapping[tuple[str, ...], Template]) -> None:
    for template in templates.values():
        template.close()


def _park() -> NoReturn:
    """Wait for the end of this process: the step must not be recorded, neither as done nor as failed."""
    while True:
        time.sleep(3600)
