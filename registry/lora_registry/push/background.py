"""Work that may outlast a request: it goes on in a thread, and the client asks again for its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

PARALLEL: Final = 2
"""Works at a time in a process: each reads a blob from the store at full speed."""

_slots: Final = threading.BoundedSemaphore(PARALLEL)
_lock: Final = threading.Lock()
_running: Final[dict[tuple[str, str], Future[None]]] = {}


def finished(key: tuple[str, str], work: Callable[[], None], *, seconds: float) -> bool:
    """Start `work`, unless it runs already under this key, and wait for its end for `seconds`.

    Return False if it still runs. Raises what it raised. work: idempotent, for another process may run it too, and a
    process that stops does not wait for it.
    """
    with _lock:
        future = _running.get(key)
        if future is None:
            future = _running[key] = Future()
            # A daemon: it must not keep a service that stops from ending.
            threading.Thread(target=_run, args=(future, work), name="check-upload", daemon=True).start()
    try:
        future.result(timeout=seconds)
    except TimeoutError:
        if not future.done():
            return False
        raise
    finally:
        if future.done():
            with _lock:
                _running.pop(key, None)
    return True


def _run(future: Future[None], work: Callable[[], None]) -> None:
    try:
        with _slots:
            work()
    except BaseException as error:  # noqa: BLE001, the request that waits raises it
        future.set_exception(error)
    else:
        future.set_result(None)
