"""The device that an operation runs on: which one, why, and how tensors reach it.

A device is a part of an operation's execution, not of its plan. `choice` and `cuda` load neither numpy nor torch.
"""

from __future__ import annotations

from lora_kernels.devices.choice import Estimate, Execution, choose, require

__all__ = ["Estimate", "Execution", "choose", "require"]
