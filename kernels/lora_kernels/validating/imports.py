"""Import what a validation needs, so that processes can be forked with it done.

Nothing of it may start a thread or touch CUDA: neither survives a fork. PEFT imports bitsandbytes, which asks every GPU
for its abilities; where there is one, both are left to the child.
"""

from __future__ import annotations

import importlib
import os
from typing import Final

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
_TOUCH_CUDA: Final = ("peft", "lora_kernels.validating.effect")
_GPU: Final = ("/dev/nvidiactl", "/dev/kfd")

for _name in (*_MODULES, *(() if any(map(os.path.exists, _GPU)) else _TOUCH_CUDA)):
    importlib.import_module(_name)
