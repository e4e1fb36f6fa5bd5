"""BLAS runs on one thread while a merge runs, and goes back to what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

from lora_kernels.numeric.blas import on_one_thread, one_thread


@pytest.fixture
def threads() -> Iterator[Callable[[], int]]:
    """The thread count of numpy's BLAS, which is 2 at first."""
    import numpy as np  # noqa: F401 loads its BLAS

    blas = ThreadpoolController().select(user_api="blas").lib_controllers
    if not blas:
        pytest.skip("numpy is built with a BLAS whose threads threadpoolctl does not control")
    with threadpool_limits(2, user_api="blas"):
        yield lambda: max(library.get_num_threads() for library in blas)


def test_one_thread_while_held_by_anyone(threads: Callable[[], int]) -> None:
    with one_thread():
        with one_thread():
            assert threads() == 1
        assert threads() == 1
    assert threads() == 2
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert threads() == 2


def test_results_left_half_read_hold_nothing(threads: Callable[[], int]) -> None:
    results = on_one_thread(threads() for _ in range(3))
    assert next(results) == 1
    assert threads() == 2
    assert list(results) == [1, 1]
    assert threads() == 2
