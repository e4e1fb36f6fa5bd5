"""Read and write low-rank adapters, one module at a time.

`open_adapter` returns a reader of a folder: its modules, their shapes, their factors as float32. `write_adapter` and
`adapter_writer` write a folder that PEFT, transformers and vLLM load.
"""

from __future__ import annotations

from lora_kernels.adapters.groups import Extra
from lora_kernels.adapters.low_rank import LowRankModule, ModuleShape
from lora_kernels.adapters.read import AdapterReader, open_adapter, widest
from lora_kernels.adapters.write import AdapterIdentity, AdapterWriter, adapter_writer, write_adapter

__all__ = [
    "AdapterIdentity",
    "AdapterReader",
    "AdapterWriter",
    "Extra",
    "LowRankModule",
    "ModuleShape",
    "adapter_writer",
    "open_adapter",
    "widest",
    "write_adapter",
]
