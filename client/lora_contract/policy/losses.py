"""Checks of losses: against the base and against the tag's current target, paired by record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from lora_contract.policy.document import Policy
from lora_contract.statistics import MIN_RECORDS, Interval, paired_difference
from lora_contract.validation import Evaluation, Validation

C = TypeVar("C")
Make = Callable[..., C]


def compare_losses(
    policy: Policy,
    report: Validation,
    target: Validation | None,
    *,
    has_target: bool,
    sets: dict[str, str],
    make: Make[C],
) -> Iterator[C]:
    """Checks of the rule `quality:SET…` for each evaluation set (digest -> reference)."""
    if not sets:
        yield make("quality", "warned", "No evaluation set was given: quality was not measured.")
    for digest, name in sorted(sets.items(), key=lambda item: item[1]):
        found = _evaluation(report, digest)
        if found is None:
            yield make(f"quality:{name}", "missing", f"There are no losses on {name} yet.")
            continue
        if not math.isfinite(found.loss):
            yield make(f"quality:{name}", "failed", f"The loss on {name} is not finite.")
            continue
        ceiling = policy.quality.highest.get(name)
        if ceiling is not None:
            state = "passed" if found.loss <= ceiling else "failed"
            yield make(
                f"quality:{name}:highest", state, f"Loss {found.loss:.4f} on {name}; the maximum is {ceiling:g}."
            )
        if policy.quality.better_than_base:
            yield _better(policy, found, name, make)
        if policy.quality.not_worse_than_holder and has_target:
            yield _not_worse(policy, found, _evaluation(target, digest), name, make)


def forgetting(
    policy: Policy,
    report: Validation,
    target: Validation | None,
    *,
    has_target: bool,
    sets: dict[str, str],
    make: Make[C],
) -> Iterator[C]:
    """Checks of the rule `forgetting:SET`."""
    for digest, name in sorted(sets.items(), key=lambda item: item[1]):
        found = _evaluation(report, digest)
        before = _evaluation(target, digest) if has_target else found
        if found is None or before is None:
            yield make(f"forgetting:{name}", "missing", f"There are no losses on {name} yet.")
            continue
        reference = before.loss if has_target else found.base_loss
        increase = found.loss - reference
        other = "the tag's current target" if has_target else "the base"
        message = f"On {name} the loss differs by {increase:+.4f} from {other}"
        evidence = {"loss": found.loss, "reference": reference, "increase": increase}
        if policy.forgetting.most is None:
            yield make(f"forgetting:{name}", "passed", f"{message}.", evidence)
        else:
            state = "passed" if increase <= policy.forgetting.most else "failed"
            maximum = f"the maximum is {policy.forgetting.most:+g}"
            yield make(f"forgetting:{name}", state, f"{message}; {maximum}.", evidence)


def _better(policy: Policy, found: Evaluation, name: str, make: Make[C]) -> C:
    rule, least = f"quality:{name}:base", policy.quality.least_effect
    interval = _interval(found.nats, found.base_nats, found.tokens, policy.quality.level)
    if interval is None:
        return make(rule, "failed", _too_few(found, name))
    evidence = _evidence(found.loss, found.base_loss, interval, least)
    if interval.high < 0 and interval.mean <= -least:
        return make(rule, "passed", f"On {name} it is better than the base by {_by(interval)}.", evidence)
    if interval.low > 0 and interval.mean >= least:
        return make(rule, "failed", f"On {name} it is worse than the base by {_by(interval)}.", evidence)
    excludes_zero = interval.high < 0 or interval.low > 0
    why = f"the smallest relevant difference is {least:g}" if excludes_zero else "the interval contains 0"
    return make(rule, "failed", f"On {name} it is not better than the base: {_signed(interval)}; {why}.", evidence)


def _not_worse(policy: Policy, found: Evaluation, target: Evaluation | None, name: str, make: Make[C]) -> C:
    rule = f"quality:{name}:holder"
    if target is None:
        return make(rule, "missing", f"The tag's current target has no losses on {name} yet.")
    gain = target.base_loss - target.loss
    least = max(policy.quality.least_effect, policy.quality.least_share * gain if math.isfinite(gain) else 0.0)
    interval = _interval(found.nats, target.nats, found.tokens, policy.quality.level)
    if interval is None:
        return make(rule, "failed", _too_few(found, name))
    evidence = _evidence(found.loss, target.loss, interval, least)
    # The whole interval must exceed `least`: otherwise the records do not distinguish the difference from seed noise.
    if interval.low >= least:
        message = f"On {name} it is worse than the tag's current target by {_by(interval)}."
        return make(rule, "failed", message, evidence)
    if interval.high <= -least:
        verdict = f"better than the tag's current target by {_by(interval)}"
    else:
        verdict = f"neither better nor worse than the tag's current target: {_signed(interval)}"
    return make(rule, "passed", f"On {name} it is {verdict}.", evidence)


def _interval(nats: list[float | None], other: list[float | None], tokens: list[int], level: float) -> Interval | None:
    """None if there are too few records or a loss of either is not finite."""
    mine, theirs = ([value for value in values if value is not None] for values in (nats, other))
    if not len(mine) == len(theirs) == len(tokens):
        return None
    return paired_difference(mine, theirs, tokens, level=level)


def _too_few(found: Evaluation, name: str) -> str:
    return f"{name} has {len(found.tokens)} records; a comparison needs {MIN_RECORDS} or more, all with finite losses."


def _by(interval: Interval) -> str:
    """The magnitude of a difference; the sentence states its direction."""
    low, high = sorted((abs(interval.low), abs(interval.high)))
    return f"{abs(interval.mean):.4f} nats per token ({low:.4f} to {high:.4f} {_rest(interval)}"


def _signed(interval: Interval) -> str:
    return f"{interval.mean:+.4f} nats per token ({interval.low:+.4f} to {interval.high:+.4f} {_rest(interval)}"


def _rest(interval: Interval) -> str:
    return f"at {interval.level:.0%}, {interval.records} records)"


def _evidence(loss: float, reference: float, interval: Interval, least: float) -> dict[str, Any]:
    return {
        "loss": loss,
        "reference": reference,
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "records": interval.records,
        "least_effect": least,
    }


def _evaluation(report: Validation | None, dataset: str) -> Evaluation | None:
    return next((found for found in report.evaluations if found.dataset == dataset), None) if report else None
