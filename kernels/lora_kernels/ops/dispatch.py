"""The choice between the Triton kernel and the reference implementation in torch.

Tensors on a GPU go to Triton, all others to torch; `backend=` overrides it. On a CPU, Triton runs only in its
interpreter, which TRITON_INTERPRET=1 enables before Triton is first imported, and which is for tests: it is about a
hundred times slower than torch.
"""

from __future__ import annotations

from typing import Literal

import torch

from lora_contract.errors import RegistryError

Backend = Literal["triton", "torch"]


def choose(device: torch.device, backend: Backend | None) -> Backend:
    """The backend for a device. backend: None to choose it by the device. Raises RegistryError `unsupported` if Triton
    cannot run."""
    if backend is None:
        return "triton" if device.type == "cuda" else "torch"
    if backend == "triton" and device.type != "cuda" and not interpreted():
        raise RegistryError(
            "unsupported",
            f"The Triton kernels were requested for tensors on the device `{device}`; expected a CUDA device.",
            hint="Omit `backend` to compute with torch, or set TRITON_INTERPRET=1 before Triton is imported to run the "
            "kernels in its interpreter.",
        )
    return backend


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter in this process."""
    from triton import knobs

    return bool(knobs.runtime.interpret)
