"""Import the modules of a validation before child processes are forked.

No import may start a thread or initialize CUDA: neither survives a fork. PEFT imports bitsandbytes, which queries every
GPU; on machines with a GPU, the child imports both.
"""

from __future__ import annotations

import importlib
import os
from typing import Final

from lora_kernels.validating.libraries import import_libraries

_MODULES: Final = (
    "torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llama.tokenization_llama",
    "lora_kernels.validating.agreement",
    "lora_kernels.validating.behaviour",
    "lora_kernels.validating.environment",
    "lora_kernels.validating.harness",
    "lora_kernels.validating.models",
    "lora_kernels.validating.numbers",
    "lora_kernels.validating.structure",
    "lora_kernels.validating.suite",
    "lora_kernels.validating.threads",
    "lora_kernels.validating.tokenizer",
)
_GPU: Final = ("/dev/nvidiactl", "/dev/kfd")

_cpu = not any(map(os.path.exists, _GPU))
if _cpu:
    import_libraries()
for _name in (*_MODULES, *(["lora_kernels.validating.effect"] if _cpu else [])):
    importlib.import_module(_name)
