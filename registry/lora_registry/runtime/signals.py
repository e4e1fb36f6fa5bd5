"""Waiting for signals in the main thread."""

from __future__ import annotations

import signal
from queue import SimpleQueue


def received(*numbers: signal.Signals) -> SimpleQueue[int]:
    """A queue that receives each of these signals from now on. Call it in the main thread.

    Not an Event: a handler runs in the main thread between two of its steps, and setting an Event that this thread is
    just about to wait for asks for a lock that it holds itself. `SimpleQueue.put` is made to be called so
    (docs.python.org/3/library/queue.html).
    """
    queue: SimpleQueue[int] = SimpleQueue()
    for number in numbers:
        signal.signal(number, lambda number, _frame: queue.put(number))
    return queue
