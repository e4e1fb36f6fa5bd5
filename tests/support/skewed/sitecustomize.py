"""Imported by Python at its start where this folder is on its path: a clock that is SKEW_SECONDS off.

`time.time` and `time.time_ns` are what the service, its workers and the job engine read. Not libfaketime: under it (0.9.10)
`time.sleep` of CPython 3.11 raises EINVAL or hangs.
"""

import os
import time

_skew = float(os.environ.get("SKEW_SECONDS", "0"))
_seconds, _nanoseconds = time.time, time.time_ns
time.time = lambda: _seconds() + _skew
time.time_ns = lambda: _nanoseconds() + int(_skew * 1e9)
