"""Devices that compute an operation."""

from __future__ import annotations

from typing import Final, Literal, get_args

RecipeDevice = Literal["cpu", "cuda"]
"""Device of a recipe. A GPU sums in another order than a CPU, which may change the last bits of a result."""

Device = Literal["cpu", "cuda", "auto"]
"""Device of a request. auto: the one that is predicted to be faster."""

DEVICES: Final[tuple[Device, ...]] = get_args(Device)
