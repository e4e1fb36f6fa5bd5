"""Hot swap: adapters merged into, exchanged in and removed from the weights of a running model, in place.

    parameters  the model's parameters as tensors of the base's files; comparison of their values
    kept        the base's bytes, which every swap starts from: read again from the files, or kept
    installed   what is resident, with digests
    prepare     an adapter, planned, checked and computed before anything is written
    resident    the model: swap, restore, state

A swap never subtracts: it merges into the base's own bytes, so that what was resident before leaves no trace.
"""

from __future__ import annotations

from lora_kernels.swap.installed import Installed, InstalledAdapter
from lora_kernels.swap.kept import Keep
from lora_kernels.swap.prepare import Prepared, SwapAdapter
from lora_kernels.swap.resident import ResidentModel

__all__ = ["Installed", "InstalledAdapter", "Keep", "Prepared", "ResidentModel", "SwapAdapter"]
