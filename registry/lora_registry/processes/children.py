"""The child processes of a worker: start one, forward its reports, and raise a clear error if it fails."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from lora_registry.processes.confinement import Confinement
from lora_registry.processes.process import Process, execute
from lora_registry.processes.stream import JobSink, Stream, child_error, exit_error
from lora_registry.processes.variables import for_children
from lora_registry.processes.warm import Template
from lora_registry.runtime.faults import fault_point
from lora_registry.runtime.typed import encode

_LINGER: Final = 10.0

ServeBlobs = Callable[[socket.socket, str, str], None]
"""Serve blobs to a child over its socket until it closes: (socket, module, request). The request names what it may
read."""


class Children:
    """The child processes of this worker. `stop()` kills them all; no step continues after that.

    groups: modules whose functions run in children, with their imports. A group has one warm process, started for its
    first child; a module outside all groups has its own.
    confinement: of children by the module of their function. serve_blobs: None: children open the store themselves.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[str]] = (),
        *,
        confinement: Callable[[str], Confinement] = lambda _module: Confinement(),
        serve_blobs: ServeBlobs | None = None,
    ) -> None:
        self._confinement = confinement
        self._serve_blobs = serve_blobs
        self._groups = [tuple(group) for group in groups]
        self._templates: dict[tuple[str, ...], Template] = {}
        self._lock = threading.Lock()
        self._running: set[Process] = set()
        self._starting = 0
        self._stopping = False
        # With no reference to this object left, nothing can ask its templates for a child.
        weakref.finalize(self, _close_all, self._templates)

    def run(
        self,
        *,
        name: str,
        target: str,
        spec: dict[str, Any],
        sink: JobSink,
        timeout: float | None,
        confinement: Confinement | None = None,
    ) -> Any:
        """Run `module:function` in a child process and return its result.

        Call it from the thread of the step: the child may be tied to the life of that thread.
        timeout: seconds, None for no limit. confinement: None: that of its module.

        Raises the RegistryError of the function, or `job-failed` with `reason` (signal, exit, timeout, unreadable,
        memory) if the process ended without a result.
        """
        module = target.partition(":")[0]
        process = self._start(module, sink.alive)
        fault_point(f"jobs.child.{name}.started")
        stream = Stream(process, sink)
        try:
            self._serve(process, module, spec)
            process.send(
                {
                    "target": target,
                    "spec": spec,
                    "confinement": encode(confinement or self._confinement(module)),
                    "blobs": self._serve_blobs is not None,
                }
            )
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

    def close(self) -> None:
        """End the warm processes; children that run go on."""
        with self._lock:
            _close_all(self._templates)
            self._templates.clear()

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
                    process = execute(for_children(os.environ))
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

    def _serve(self, process: Process, module: str, spec: dict[str, Any]) -> None:
        if self._serve_blobs is None:
            process.blobs.close()
            return
        arguments = (process.blobs, module, json.dumps(spec))
        threading.Thread(target=self._serve_blobs, args=arguments, name="child-blobs", daemon=True).start()

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
                template = self._templates[modules] = Template(modules, for_children(os.environ))
            return template


def _close_all(templates: Mapping[tuple[str, ...], Template]) -> None:
    for template in templates.values():
        template.close()


def _block_forever() -> NoReturn:
    """Block until this process ends: the step must be recorded neither as done nor as failed."""
    while True:
        time.sleep(3600)
