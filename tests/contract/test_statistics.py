"""Intervals of paired losses: closed forms, coverage by simulation, and what is refused."""

from __future__ import annotations

import math
import random

import pytest

from lora_contract.errors import RegistryError
from lora_contract.statistics import paired_difference, student_t_quantile


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [(0.975, 7, 2.3646), (0.975, 10, 2.2281), (0.975, 60, 2.0003), (0.95, 30, 1.6973), (0.995, 7, 3.4995)],
)
def test_quantiles_are_those_of_the_tables(probability: float, freedom: int, expected: float) -> None:
    assert student_t_quantile(probability, freedom) == pytest.approx(expected, abs=1e-3)
    assert student_t_quantile(1 - probability, freedom) == pytest.approx(-expected, abs=1e-3)


def test_equal_records_have_the_interval_of_a_mean() -> None:
    """With as many tokens in each record a ratio is a mean, whose interval the books give."""
    changes = [0.1, -0.3, 0.2, 0.4, -0.1, 0.0, 0.25, 0.15, -0.05, 0.3]
    interval = paired_difference([10 * change for change in changes], [0.0] * 10, [10] * 10)
    assert interval is not None
    mean = sum(changes) / 10
    deviation = math.sqrt(sum((change - mean) ** 2 for change in changes) / 9)
    assert interval.mean == pytest.approx(mean)
    assert interval.high - interval.mean == pytest.approx(2.2622 * deviation / math.sqrt(10), rel=1e-3)
    assert interval.mean - interval.low == pytest.approx(interval.high - interval.mean)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Records of different lengths with a shift of their own, as texts have: 95 of 100 intervals hold the difference."""
    rng, held, runs, shift = random.Random(5), 0, 2000, 0.07
    for _ in range(runs):
        tokens = [rng.randint(50, 400) for _ in range(40)]
        other = [3.5 * count for count in tokens]
        nats = [(3.5 + shift + rng.gauss(0, 0.2)) * count for count in tokens]
        interval = paired_difference(nats, other, tokens)
        assert interval is not None
        held += interval.low <= shift <= interval.high
    # Four standard errors of a share of 0.95 of 2000, and the half per cent that a ratio of 40 records may lack.
    assert held / runs == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / runs) + 0.005)


def test_too_few_records_have_no_interval() -> None:
    assert paired_difference([1.0] * 7, [2.0] * 7, [5] * 7) is None
    assert paired_difference([1.0] * 9, [2.0] * 9, [5] * 7 + [0, 0]) is None


def test_the_same_losses_differ_by_nothing() -> None:
    interval = paired_difference([3.0, 4.0] * 6, [3.0, 4.0] * 6, [2, 3] * 6)
    assert interval is not None
    assert (interval.mean, interval.low, interval.high, interval.records) == (0, 0, 0, 12)


@pytest.mark.parametrize(("nats", "other"), [([1.0] * 9, [1.0] * 10), ([1.0] * 9 + [math.nan], [1.0] * 10)])
def test_what_cannot_be_paired_is_refused(nats: list[float], other: list[float]) -> None:
    with pytest.raises(RegistryError):
        paired_difference(nats, other, [5] * 10)
