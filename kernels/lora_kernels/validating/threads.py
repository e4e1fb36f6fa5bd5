"""Number of torch threads during a validation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lora_contract.validation import Precision

# Bytes of weights. In smaller models, threads mostly wait for each other, and OpenMP threads wait in a busy loop: with
# a million parameters they took six times the processor time of one thread.
SMALL: Final = 256 << 20


@contextmanager
def few_threads(base: Path, precision: Precision) -> Iterator[None]:
    """Use one thread for a small base computed in float32, where the number of threads does not change the result."""
    import torch

    from lora_kernels.validating.models import compute_dtype

    weights = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    if weights > SMALL or compute_dtype(precision) != "float32":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
