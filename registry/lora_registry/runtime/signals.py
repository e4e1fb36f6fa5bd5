"""Wait for signals in the main thread."""

from __future__ import annotations

import signal
from queue import SimpleQueue


def received(*numbers: signal.Signals) -> SimpleQueue[int]:
    """Return a queue that receives each of these signals from now on. Call it in the main thread.

    Not an Event: a handler runs in the main thread between two of its steps. If that thread is about to wait for the
    Event, setting it there deadlocks on the lock that the thread holds. `SimpleQueue.put` is reentrant
    (docs.python.org/3/library/queue.html).
    """
    queue: SimpleQueue[int] = SimpleQueue()
    for number in numbers:
        signal.signal(number, lambda number, _frame: queue.put(number))
    return queue
