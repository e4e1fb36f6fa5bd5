"""BLAS runs on one thread while a merge runs, and goes back to what it was."""

from __future__ import annotations

import pytest

from lora_kernels.numeric.blas import _controls, on_one_thread, one_thread


def test_one_thread_while_held_by_anyone() -> None:
    controls = _controls()
    if controls is None:
        pytest.skip("numpy is built with another BLAS here; nothing to hold")
    set_threads, get_threads = controls
    before = get_threads()
    try:
        set_threads(2)
        with one_thread():
            with one_thread():
                assert get_threads() == 1
            assert get_threads() == 1
        assert get_threads() == 2
        with pytest.raises(KeyError), one_thread():
            raise KeyError
        assert get_threads() == 2
    finally:
        set_threads(before)


def test_results_left_half_read_hold_nothing() -> None:
    controls = _controls()
    if controls is None:
        pytest.skip("numpy is built with another BLAS here; nothing to hold")
    set_threads, get_threads = controls
    before = get_threads()
    try:
        set_threads(2)
        results = on_one_thread(get_threads() for _ in range(3))
        assert next(results) == 1
        assert get_threads() == 2
        assert list(results) == [1, 1]
        assert get_threads() == 2
    finally:
        set_threads(before)
