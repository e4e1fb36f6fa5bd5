"""What modules pull and help: derivatives that finite differences confirm, and what is said of which pattern."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_contract.findings import Finding
from lora_kernels.validating import contribution, losses, models
from lora_kernels.validating.module_ablation import Contributions, measure
from tests.support.command import TINY
from tests.support.testbed import require_testbed

TOKENS = [100 + number for number in range(20)]
NAMES = [f"layers.{number}" for number in range(12)]


def contributions(whole: dict[str, float], half: dict[str, float], *, gain: float = 1.0) -> Contributions:
    """Of modules that pull and help that much in nats per token, a little more or less in each record."""
    rng = np.random.default_rng(0)

    def table(values: dict[str, float], sign: float) -> list[list[float]]:
        rows = [[sign * values[name] * count * rng.normal(1, 0.1) for name in NAMES] for count in TOKENS]
        return [[float(value) for value in row] for row in rows]

    return Contributions(NAMES, gain, table(whole, 1), table(half, -1), TOKENS)


def said(
    whole: dict[str, float],
    half: dict[str, float],
    *,
    gain: float = 1.0,
    without: dict[str, float] | None = None,
) -> list[Finding]:
    """without: nats per token by which the loss is higher without a module; 0 where nothing is said."""
    found, more = contributions(whole, half, gain=gain), dict.fromkeys(NAMES, 0.0) | (without or {})
    for names in (found.suspects, *((name,) for name in NAMES)):
        found.ablate(names, [sum(more[name] for name in names) * count for count in TOKENS])
    return contribution.findings(found)


PULL = dict.fromkeys(NAMES, -0.01)
HELP = dict.fromkeys(NAMES, 0.08)


def test_nothing_is_said_of_a_trained_adapter() -> None:
    assert said(PULL, HELP) == []
    assert said(dict.fromkeys(NAMES, 0.0), HELP) == []


@pytest.mark.parametrize(("pull", "severity"), [(0.05, "error"), (0.008, "warning")])
def test_one_module_that_pulls_back_is_named(pull: float, severity: str) -> None:
    (found,) = said({**PULL, "layers.3": pull}, {**HELP, "layers.3": -pull}, gain=0.5, without={"layers.3": -pull})
    assert (found.code, found.where, found.severity) == ("module-pulls-back", "layers.3", severity)


def test_one_that_pulls_back_and_helps_is_not_named() -> None:
    """An embedding that learned a few words by heart looks like this."""
    assert said({**PULL, "layers.3": 0.03}, HELP, without={"layers.3": 0.5}) == []


def test_of_many_that_work_against_it_the_worst_is_named_first() -> None:
    worse = {"layers.3": -0.02, "layers.7": -0.2}
    (found,) = said({**PULL, "layers.3": 0.3, "layers.7": 0.2}, HELP | worse, without=worse)
    assert (found.where, found.severity) == ("layers.7", "error")
    assert "layers.3" in found.message


def test_where_all_pull_back_the_whole_is_too_strong() -> None:
    """However much more some do than others: an adapter that learned its texts by heart looks like this."""
    (found,) = said({**dict.fromkeys(NAMES, 0.008), "layers.3": 0.05, "layers.4": 0.03}, HELP)
    assert (found.code, found.severity) == ("update-too-strong", "warning")


def test_where_the_others_pull_more_than_one_harms_the_whole_is_too_strong() -> None:
    """An alpha that is half as large again looks like this: something in it is then worse than nothing."""
    (found,) = said(dict.fromkeys(NAMES, 0.05), {**HELP, "layers.3": -0.01}, without={"layers.3": -0.02})
    assert (found.code, found.severity) == ("update-too-strong", "warning")


def test_modules_that_change_outputs_and_help_nothing_are_named() -> None:
    (found,) = said(PULL, {**HELP, "layers.2": -0.002, "layers.7": -0.001})
    assert (found.code, found.severity) == ("module-adds-nothing", "warning")
    assert "2 of 12 modules" in found.message


def test_modules_without_which_the_loss_is_higher_are_not_named() -> None:
    """Where the others are half, they seem to do nothing."""
    assert said(PULL, {**HELP, "layers.2": -0.002, "layers.7": -0.001}, without=HELP) == []
    assert said(PULL, {**HELP, **dict.fromkeys(NAMES[:6], -0.002)}, without=HELP) == []


def test_an_update_of_zeros_is_not_told_again() -> None:
    assert said({**PULL, "layers.2": 0.0}, {**HELP, "layers.2": 0.0}) == []


def test_modules_most_of_which_do_not_help_are_of_another_base() -> None:
    lost = {**HELP, **dict.fromkeys(NAMES[:6], -0.002)}
    (found,) = said({**PULL, **dict.fromkeys(NAMES[:6], 0.001)}, lost)
    assert (found.code, found.severity) == ("modules-do-not-help", "error")


def test_what_is_worse_than_its_base_is_left_to_its_losses() -> None:
    lost = dict.fromkeys(NAMES, -0.01)
    assert said({**PULL, "layers.3": 0.05}, lost, gain=-1.0) == []


Measured = tuple[Any, list[tuple[losses.Encoded, float | None]], Contributions | None]


@cache
def measured(name: str, domain: str) -> Measured:
    bed = require_testbed()
    return measured_in(bed / "base", bed / "adapters" / name, bed / "data" / f"{domain}_eval.jsonl")


def measured_in(base: Path, adapter: Path, data: Path) -> Measured:
    items = losses.encode(models.load_tokenizer(base), losses.read_records(data))[:10]
    model = models.load_base(base)
    pairs = list(zip(items, losses.losses(model, items, lambda _done: None), strict=True))
    model = models.attach(model, adapter)
    return model, pairs, measure(model, pairs, lambda _done, _total: None)


def mean(model: Any, pairs: list[tuple[losses.Encoded, float | None]]) -> float:
    items = [item for item, _ in pairs]
    nats = losses.losses(model, items, lambda _done: None)
    return sum(value or math.nan for value in nats) / sum(item.tokens for item in items)


@pytest.mark.parametrize("which", ["model.layers.1.mlp.up_proj", "model.layers.3.self_attn.q_proj", ""])
def test_a_pull_is_the_derivative_of_the_loss(which: str) -> None:
    """Of one module, or of all together where `which` is empty, against a difference of losses."""
    model, pairs, found = measured("series-sql/v2", "sql")
    assert found is not None
    layers = [
        layer for name, layer in model.get_base_model().named_modules() if name in found.gradient and which in name
    ]
    step, at = 1e-2, {}
    for factor in (1 - step, 1 + step):
        for layer in layers:
            layer.scaling["default"] *= factor
        at[factor] = mean(model, pairs)
        for layer in layers:
            layer.scaling["default"] /= factor
    slope = (at[1 + step] - at[1 - step]) / (2 * step)
    pull = found.gradient[which] if which else found.joint_gradient(list(found.gradient))
    assert pull.mean == pytest.approx(slope, rel=0.02, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "domain", "modules"),
    [("series-sql/v2", "sql", 28), ("dora-r8-sql", "sql", 28), ("ia3-sql", "sql", 12), ("lora-lmhead-cheader", "cheader", 9)],
)  # fmt: skip
def test_helps_sum_to_the_gain_for_every_type_that_wraps_layers(name: str, domain: str, modules: int) -> None:
    model, pairs, found = measured(name, domain)
    assert found is not None
    assert len(found.gradient) == modules
    base = sum(value or math.nan for _, value in pairs) / sum(item.tokens for item, _ in pairs)
    assert found.gain == pytest.approx(base - mean(model, pairs), rel=1e-5)
    # One point for the integral over all factors: the midpoint rule.
    assert sum(help_.mean for help_ in found.gain_at_half.values()) == pytest.approx(found.gain, rel=0.25)


def test_a_module_that_helps_only_where_the_others_are_whole_is_taken_out_to_see_it() -> None:
    """One k_proj of the example, which the derivatives alone take for idle."""
    model, pairs, found = measured_in(
        TINY / "base", TINY / "adapters" / "queries-v2", TINY / "data" / "queries_eval.jsonl"
    )
    assert found is not None
    (one,) = found.suspects
    more = found.ablation[(one,)]
    whole = mean(model, pairs)
    layer = model.get_base_model().get_submodule(one)
    layer.scaling["default"] = 0.0
    assert more.mean == pytest.approx(mean(model, pairs) - whole, rel=1e-4)
    assert more.low > 0.05
    assert contribution.findings(found) == []


def test_the_model_is_afterwards_what_it_was() -> None:
    model, pairs, found = measured("dora-r8-sql", "sql")
    before = mean(model, pairs)
    again = measure(model, pairs, lambda _done, _total: None)
    assert again is not None
    assert found is not None
    assert contribution.facts(again) == contribution.facts(found)
    assert mean(model, pairs) == before


def test_prompts_and_too_few_records_have_nothing_to_measure() -> None:
    assert measured("prefix-python", "python")[2] is None
    model, pairs, _ = measured("series-sql/v2", "sql")
    assert measure(model, pairs[:7], lambda _done, _total: None) is None
