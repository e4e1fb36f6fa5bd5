"""Threads of torch: one for a small base in float32, and as before afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lora_contract.validation import Precision
from lora_kernels.validating import threads
from tests.support.command import TINY


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("precision", "inside"), [("float32", 1), ("bfloat16", 3)])
def test_a_small_base_is_computed_in_one_thread_where_that_changes_no_bit(
    three_threads: None, precision: Precision, inside: int
) -> None:
    with threads.few_threads(TINY / "base", precision):
        assert torch.get_num_threads() == inside
    assert torch.get_num_threads() == 3


def test_a_large_base_keeps_its_threads(three_threads: None, tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(threads.SMALL + 1)
    with threads.few_threads(tmp_path, "float32"):
        assert torch.get_num_threads() == 3
