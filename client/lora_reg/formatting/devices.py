"""The device of an operation on this machine, as a line. Pure."""

from __future__ import annotations

from typing import Any


def device_line(execution: dict[str, Any]) -> str:
    """execution: `lora_kernels.devices.Execution` as an object of JSON."""
    processor = f" ({execution['processor']})" if execution["processor"] else ""
    return f"device: {execution['device']}{processor}, by {execution['backend']}; {execution['reason']}"


def device_lines(report: dict[str, Any]) -> list[str]:
    """The device of a job's report, if it is not the CPU. Reports of older services have none."""
    execution = report.get("execution")
    return [device_line(execution)] if execution and execution["device"] != "cpu" else []
