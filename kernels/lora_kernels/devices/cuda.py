"""CUDA devices as the driver reports them.

torch, which takes seconds to load, is not needed to see that there is none.
"""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from typing import Final, NamedTuple

_LIBRARY: Final = "libcuda.so.1"
_LONGEST_NAME: Final = 256
# What computes on a device, besides the driver.
PACKAGES: Final = ("torch", "triton")


class CudaDevice(NamedTuple):
    """The first device of this process. memory: in bytes."""

    name: str
    memory: int


def find_device() -> CudaDevice | str:
    """The device, or why there is none, as a sentence. Call it in a process that does not fork afterwards: the driver
    does not survive a fork."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return f"this machine has no NVIDIA driver ({_LIBRARY})"
    if status := driver.cuInit(0):
        return f"the NVIDIA driver does not start (cuInit returned {status})"
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver shows no device to this process"
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} is not installed"
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(_LONGEST_NAME)
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, _LONGEST_NAME, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return CudaDevice(name.value.decode(), memory.value)
