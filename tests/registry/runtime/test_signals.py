"""A signal that comes at whatever moment is received, and stops nothing that waits for it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

RECEIVER = """
import queue, signal, time
from lora_registry.runtime.signals import received
got = received(signal.SIGTERM)
print("ready", flush=True)
end, count = time.monotonic() + 3, 0
while time.monotonic() < end:
    try:
        count += got.get(timeout=0.0002) == signal.SIGTERM
    except queue.Empty:
        pass
print(count, flush=True)
"""


def test_thousands_at_any_moment_are_received() -> None:
    """With threading.Event in its place the receiver hangs, or ends by a RecursionError."""
    with subprocess.Popen(
        [sys.executable, "-c", RECEIVER],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        drawn, sent, end = random.Random(0), 0, time.monotonic() + 2.5
        while time.monotonic() < end:
            os.kill(process.pid, signal.SIGTERM)
            sent += 1
            time.sleep(drawn.random() * 0.0005)
        try:
            received = int(process.communicate(timeout=60)[0])
        finally:
            process.kill()
    # One that comes before the last was handled is the same to the kernel.
    assert 100 < received <= sent
