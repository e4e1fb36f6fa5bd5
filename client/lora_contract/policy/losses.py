"""What losses say: against the base, against the version that holds the tag, record by record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from lora_contract.policy.document import Policy
from lora_contract.statistics import FEWEST, Interval, paired
from lora_contract.validation import Evaluation, Validation

C = TypeVar("C")
Make = Callable[..., C]


def compare_losses(
    policy: Policy,
    report: Validation,
    holder: Validation | None,
    *,
    held: bool,
    sets: dict[str, str],
    make: Make[C],
) -> Iterator[C]:
    """Checks of the rule `quality:SET…` for each evaluation set (digest -> reference)."""
    if not sets:
        yield make("quality", "warned", "No evaluation set was asked for: what it learned was not measured.")
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
            yield make(f"quality:{name}:highest", state, f"Loss {found.loss:.4f} on {name}; at most {ceiling:g}.")
        if policy.quality.better_than_base:
            yield _better(policy, found, name, make)
        if policy.quality.not_worse_than_holder and held:
            yield _not_worse(policy, found, _evaluation(holder, digest), name, make)


def forgetting(
    policy: Policy,
    report: Validation,
    holder: Validation | None,
    *,
    held: bool,
    sets: dict[str, str],
    make: Make[C],
) -> Iterator[C]:
    """Checks of the rule `forgetting:SET`."""
    for digest, name in sorted(sets.items(), key=lambda item: item[1]):
        found = _evaluation(report, digest)
        before = _evaluation(holder, digest) if held else found
        if found is None or before is None:
            yield make(f"forgetting:{name}", "missing", f"There are no losses on {name} yet.")
            continue
        reference = before.loss if held else found.base_loss
        gain = found.loss - reference
        told = f"On {name} the loss is {gain:+.4f} against {'the version in service' if held else 'the base'}"
        evidence = {"loss": found.loss, "reference": reference, "increase": gain}
        if policy.forgetting.most is None:
            yield make(f"forgetting:{name}", "passed", f"{told}.", evidence)
        else:
            state = "passed" if gain <= policy.forgetting.most else "failed"
            yield make(f"forgetting:{name}", state, f"{told}; at most {policy.forgetting.most:+g}.", evidence)


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
    why = f"the least that counts is {least:g}" if interval.high < 0 or interval.low > 0 else "the interval holds 0"
    return make(rule, "failed", f"On {name} it is not better than the base: {_told(interval)}; {why}.", evidence)


def _not_worse(policy: Policy, found: Evaluation, holder: Evaluation | None, name: str, make: Make[C]) -> C:
    rule = f"quality:{name}:holder"
    if holder is None:
        return make(rule, "missing", f"The version that holds the tag has no losses on {name} yet.")
    gain = holder.base_loss - holder.loss
    least = max(policy.quality.least_effect, policy.quality.least_share * gain if math.isfinite(gain) else 0.0)
    interval = _interval(found.nats, holder.nats, found.tokens, policy.quality.level)
    if interval is None:
        return make(rule, "failed", _too_few(found, name))
    evidence = _evidence(found.loss, holder.loss, interval, least)
    # The whole interval: records that cannot tell a difference from what another seed does tell nothing.
    if interval.low >= least:
        message = f"On {name} it is worse than the version that holds the tag by {_by(interval)}."
        return make(rule, "failed", message, evidence)
    better = interval.high <= -least
    told = f"better than the version that holds the tag by {_by(interval)}"
    if not better:
        told = f"neither better nor worse than the version that holds the tag: {_told(interval)}"
    return make(rule, "passed", f"On {name} it is {told}.", evidence)


def _interval(nats: list[float | None], other: list[float | None], tokens: list[int], level: float) -> Interval | None:
    """None for too few records, or where a loss of either is not finite."""
    mine, theirs = ([value for value in values if value is not None] for values in (nats, other))
    if not len(mine) == len(theirs) == len(tokens):
        return None
    return paired(mine, theirs, tokens, level=level)


def _too_few(found: Evaluation, name: str) -> str:
    return f"{name} has {len(found.tokens)} records; {FEWEST} or more, all of finite loss, are needed to compare."


def _by(interval: Interval) -> str:
    """The size of a difference whose direction the sentence tells."""
    low, high = sorted((abs(interval.low), abs(interval.high)))
    return f"{abs(interval.mean):.4f} nats per token ({low:.4f} to {high:.4f} {_rest(interval)}"


def _told(interval: Interval) -> str:
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
