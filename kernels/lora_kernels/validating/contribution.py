"""What pulls and helps say of an adapter. The thresholds rest on the figures of docs/validation.md."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Final

from lora_contract.findings import Finding
from lora_contract.statistics import Interval
from lora_contract.validation import Facts
from lora_kernels.validating.pull import Pulls

# Nats per token by which the loss is lower without a module, from which that is an error.
HARM: Final = 0.01
# Of what the loss is lower by without the worst module: if the others together pull by more, the whole is too strong.
OTHERS: Final = 5
# Of the median help: a module that helps by no more than 0, whose interval ends below this, and without which the loss
# is not higher by more than this, adds nothing.
IDLE: Final = 0.12
# Share of modules that do not help, from which the adapter is of another base, if the loss is no higher without them.
ASTRAY: Final = 0.4
_SHOWN: Final = 3


def facts(found: Pulls) -> Facts:
    together = found.together(list(found.pull))
    return {
        "records": together.records,
        "gain": _short(found.gain),
        "together": _told("pull", together),
        "modules": [
            {"module": name, **_told("pull", pull), **_told("help", found.help[name])}
            for name, pull in found.pull.items()
        ],
        "without": [{"modules": list(names), **_told("loss", more)} for names, more in found.without.items()],
    }


def findings(found: Pulls) -> list[Finding]:
    """At most one: what is wrong with the whole shows in its modules as well."""
    # Worse than the base, it is refused for its losses, and what single modules do there says little.
    looks = (_astray, _against, _too_strong, _idle) if found.gain > 0 else (_too_strong,)
    return next(([told] for look in looks if (told := look(found)) is not None), [])


def _astray(found: Pulls) -> Finding | None:
    names, count = found.doubtful, _at_work(found)
    without = found.without.get(names)
    if len(names) <= max(ASTRAY * count, 2) or without is None or without.mean > found.least:
        return None
    way = "higher" if without.mean > 0 else "lower"
    return Finding(
        "modules-do-not-help",
        "error",
        f"{len(names)} of {count} modules do not lower the loss, as if they were trained for another base: "
        f"{_names(names)}. Without them it is {way} by {abs(without.mean):.4f} nats per token "
        f"({without.records} records).",
        where=names[0],
        hint="Look which base it was trained on, and push it against that one.",
    )


def _against(found: Pulls) -> Finding | None:
    alone = _alone(found)
    names = [name for name, more in alone.items() if more.high < 0 and more.mean <= -found.least]
    if not names:
        return None
    names.sort(key=lambda name: alone[name].mean)
    worst = alone[names[0]]
    if found.together([name for name in found.pull if name not in names]).mean > OTHERS * -worst.mean:
        return None
    also = f"; so it would without {_names(names[1:])}" if names[1:] else ""
    return Finding(
        "module-pulls-back",
        "error" if worst.mean <= -HARM else "warning",
        f"Without {names[0]} the loss would be lower by {-worst.mean:.4f} nats per token "
        f"({-worst.high:.4f} to {-worst.low:.4f} at {worst.level:.0%}, {worst.records} records){also}. "
        "Its sign or its scale is suspect.",
        where=names[0],
        hint="Export it again, and compare the file with what the training wrote.",
    )


def _too_strong(found: Pulls) -> Finding | None:
    together = found.together(list(found.pull))
    if together.low < found.least:
        return None
    return Finding(
        "update-too-strong",
        "warning",
        f"Turning the whole adapter down by a tenth would lower the loss by {together.mean / 10:.4f} nats per token "
        f"({together.low / 10:.4f} to {together.high / 10:.4f} at {together.level:.0%}, {together.records} records): "
        "its scale is larger than in training, or it was trained on too little for too long.",
        hint="Look at alpha and rsLoRA in the config, or stop the training earlier.",
    )


def _idle(found: Pulls) -> Finding | None:
    alone = _alone(found)
    bound = IDLE * median([help_.mean for name, help_ in found.help.items() if name not in found.still] or [0.0])
    names = [
        name
        for name in found.doubtful
        if found.help[name].high <= bound and name in alone and alone[name].mean <= bound
    ]
    if not names:
        return None
    return Finding(
        "module-adds-nothing",
        "warning",
        f"{len(names)} of {_at_work(found)} modules change the outputs and do not lower the loss: {_names(names)}.",
        where=names[0],
        hint="Compare the file with what the training wrote: their halves may be exchanged.",
    )


def _at_work(found: Pulls) -> int:
    return len(found.pull) - len(found.still)


def _alone(found: Pulls) -> dict[str, Interval]:
    """By modules that were taken out one at a time."""
    return {names[0]: more for names, more in found.without.items() if len(names) == 1}


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _told(what: str, found: Interval) -> Facts:
    return {what: _short(found.mean), f"{what}_low": _short(found.low), f"{what}_high": _short(found.high)}


_short = partial(round, ndigits=6)
