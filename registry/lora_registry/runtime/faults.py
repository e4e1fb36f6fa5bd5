"""Fault points: named places at which a test can kill or freeze this process.

`LORA_REG_FAULT` holds one of

    name            SIGKILL the process when it first reaches the point
    name:3          when it reaches it for the third time
    name@stop       SIGSTOP instead: the process is frozen, a zombie owner, until SIGCONT
    name:3@stop     both

or several of these, separated by commas. Children inherit it, so a restarted process would die again. If
`LORA_REG_FAULT_ONCE` names a folder, each fault fires in only one process and leaves a file of its name there.

It is read once, at import. Unset, a point costs one comparison. Names are dotted lower-case words, from coarse to fine:
`jobs.step.plan.after`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from typing import Final

ENV: Final = "LORA_REG_FAULT"
ENV_ONCE: Final = "LORA_REG_FAULT_ONCE"


def _parse(armed: str) -> tuple[str, int, signal.Signals]:
    target, _, action = armed.partition("@")
    name, _, nth = target.partition(":")
    if action not in ("", "stop") or (nth and not nth.isdecimal()):
        raise ValueError(f"{ENV}={armed!r}: expected name, name:N, name@stop or name:N@stop")
    return name, int(nth or 1), signal.SIGSTOP if action == "stop" else signal.SIGKILL


_armed: Final = [_parse(part) for part in os.environ.get(ENV, "").split(",") if part]
_once: Final = os.environ.get(ENV_ONCE)
_lock: Final = threading.Lock()
_hits: Final[Counter[str]] = Counter()


def fault_point(name: str) -> None:
    """Kill or stop this process here if `LORA_REG_FAULT` names this point."""
    if not _armed:
        return
    for armed, nth, sent in _armed:
        if armed != name:
            continue
        with _lock:
            _hits[name] += 1
            fires = _hits[name] == nth
        if fires and _first(name):
            # To this thread: a stop sent to the process may reach another thread first, while this one runs on.
            signal.pthread_kill(threading.get_ident(), sent)


def _first(name: str) -> bool:
    """Return whether the fault fires in this process."""
    if _once is None:
        return True
    try:
        os.close(os.open(os.path.join(_once, name.replace("/", "_")), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
