"""Who computes: the Triton kernel or its torch twin.

By device: tensors on a GPU go to Triton, all others to torch. `backend=` overrides it. On a CPU, Triton runs only in
its interpreter, which is chosen by TRITON_INTERPRET=1 before Triton is first imported, and which is for tests: it is
some hundred times slower than torch.
"""

from __future__ import annotations

from typing import Literal

import torch

from lora_contract.errors import RegistryError

Backend = Literal["triton", "torch"]


def choose(device: torch.device, backend: Backend | None) -> Backend:
    """backend: None to go by the device. Raises RegistryError `unsupported` where Triton cannot run."""
    if backend is None:
        return "triton" if device.type == "cuda" else "torch"
    if backend == "triton" and device.type != "cuda" and not interpreted():
        raise RegistryError(
            "unsupported",
            f"The Triton kernels were asked for, but the tensors are on the device `{device}`; expected a CUDA device.",
            hint="Leave `backend` out to compute with torch, or set TRITON_INTERPRET=1 before Triton is imported to "
            "run the kernels in its interpreter.",
        )
    return backend


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter in this process."""
    from triton import knobs

    return bool(knobs.runtime.interpret)
