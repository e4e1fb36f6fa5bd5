"""What all sweeps run in."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
import transformers

# Threads that load the weights of a tiny model take longer than the weights.
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()
    torch.set_num_threads(threads)
