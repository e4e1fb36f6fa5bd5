"""Starts a thread when it is imported: a process that has imported it must not be forked."""

from __future__ import annotations

import threading
import time
from typing import Any

from tests.registry.processes import work

threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def look(spec: dict[str, Any], report: Any) -> dict[str, Any]:
    return work.look(spec, report)
