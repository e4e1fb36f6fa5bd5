"""The device of an operation on this machine, as a line. Pure."""

from __future__ import annotations

from typing import Any


def device_line(execution: dict[str, Any]) -> str:
    """execution: `lora_kernels.devices.Execution` as an object of JSON."""
    processor = f" ({execution['processor']})" if execution["processor"] else ""
    return f"device: {execution['device']}{processor}, by {execution['backend']}; {execution['reason']}"
