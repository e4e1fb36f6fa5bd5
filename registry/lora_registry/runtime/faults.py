"""Fault points: named places where a test can make this process die, or freeze, exactly there.

`LORA_REG_FAULT` holds one of

    name            SIGKILL the process at the first pass of the point
    name:3          at the third pass
    name@stop       SIGSTOP instead: the process becomes a zombie owner until SIGCONT
    name:3@stop     both

It is read once, when the module is imported. Unset, a point costs one comparison. Names are dotted lower-case
words, from the coarse to the fine: `jobs.step.plan.after`.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from typing import Final

ENV: Final = "LORA_REG_FAULT"


def _parse(armed: str) -> tuple[str, int, signal.Signals]:
    target, _, action = armed.partition("@")
    name, _, nth = target.partition(":")
    if action not in ("", "stop") or (nth and not nth.isdecimal()):
        raise ValueError(f"{ENV}={armed!r}: expected name, name:N, name@stop or name:N@stop")
    return name, int(nth or 1), signal.SIGSTOP if action == "stop" else signal.SIGKILL


_armed: Final = _parse(os.environ[ENV]) if os.environ.get(ENV) else None
_passes: Final = itertools.count(1)


def fault_point(name: str) -> None:
    """Kill or stop this process here if `LORA_REG_FAULT` names this point; otherwise nothing."""
    if _armed is not None and _armed[0] == name and next(_passes) == _armed[1]:
        # To this thread: a stop sent to the process may reach another thread first, and this one runs on meanwhile.
        signal.pthread_kill(threading.get_ident(), _armed[2])
