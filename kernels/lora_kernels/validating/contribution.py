"""What pulls and helps say of an adapter. The thresholds rest on the figures of docs/validation.md."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Final

from lora_kernels.validating.pull import Pulls
from lora_reg.spec.findings import Finding
from lora_reg.spec.statistics import Interval
from lora_reg.spec.validation import Facts

# Nats per token, and as a share of the gain: a pull counts where its whole interval lies beyond the larger of both.
LEAST: Final = 0.005
SHARE: Final = 0.01
# Nats per token, from which it is an error.
HARM: Final = 0.01
# Of the strongest pull: that of all others together, beyond which they pull back as well.
OTHERS: Final = 0.5
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
    least = max(LEAST, SHARE * found.gain)
    together = found.together(list(found.pull))
    at_work = [name for name in found.pull if name not in found.still]
    # Worse than the base, it is refused for its losses, and what single modules do there says little.
    if found.gain > 0 and at_work:
        rise = found.without.get(found.doubtful)
        if len(found.doubtful) > max(ASTRAY * len(at_work), 2) and rise is not None and rise.mean <= least:
            return [_astray(found.doubtful, len(at_work), rise)]
        back = sorted((n for n in at_work if found.pull[n].low >= least), key=lambda n: -found.pull[n].mean)
        rest = found.together([name for name in found.pull if name not in back])
        # Where many do, or the others together do as well, it is not these that are wrong.
        if back and len(back) <= len(at_work) / 2 and rest.mean <= OTHERS * found.pull[back[0]].mean:
            return [_pulls_back(back, found.pull[back[0]])]
    if together.low >= least:
        return [_too_strong(together)]
    if found.gain <= 0 or not at_work:
        return []
    bound = IDLE * median(found.help[name].mean for name in at_work)
    idle = [
        name
        for name in found.doubtful
        if found.help[name].high <= bound and (name,) in found.without and found.without[(name,)].mean <= bound
    ]
    return [_idle(idle, len(at_work))] if idle else []


def _pulls_back(back: Sequence[str], strongest: Interval) -> Finding:
    also = f"; so would {_names(back[1:])}" if back[1:] else ""
    return Finding(
        "module-pulls-back",
        "error" if strongest.low >= HARM else "warning",
        f"Turning {back[0]} down by a tenth would lower the loss by {_by_a_tenth(strongest)}{also}; not so "
        "the others together. Its sign or its scale is suspect.",
        where=back[0],
        way_out="Export it again, and compare the file with what the training wrote.",
    )


def _too_strong(together: Interval) -> Finding:
    return Finding(
        "update-too-strong",
        "warning",
        f"Turning the whole adapter down by a tenth would lower the loss by {_by_a_tenth(together)}: its scale is "
        "larger than in training, or it was trained on too little for too long.",
        way_out="Look at alpha and rsLoRA in the config, or stop the training earlier.",
    )


def _astray(astray: Sequence[str], count: int, without: Interval) -> Finding:
    return Finding(
        "modules-do-not-help",
        "error",
        f"{len(astray)} of {count} modules do not lower the loss, as if they were trained for another base: "
        f"{_names(astray)}. Without them it is {_more_or_less(without)}.",
        where=astray[0],
        way_out="Look which base it was trained on, and push it against that one.",
    )


def _idle(idle: Sequence[str], count: int) -> Finding:
    return Finding(
        "module-adds-nothing",
        "warning",
        f"{len(idle)} of {count} modules change the outputs and do not lower the loss: {_names(idle)}.",
        where=idle[0],
        way_out="Compare the file with what the training wrote: their halves may be exchanged.",
    )


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _more_or_less(change: Interval) -> str:
    way = "higher" if change.mean > 0 else "lower"
    return f"{way} by {abs(change.mean):.4f} nats per token ({change.records} records)"


def _by_a_tenth(found: Interval) -> str:
    return (
        f"{found.mean / 10:.4f} nats per token "
        f"({found.low / 10:.4f} to {found.high / 10:.4f} at {found.level:.0%}, {found.records} records)"
    )


def _told(what: str, found: Interval) -> Facts:
    return {what: _short(found.mean), f"{what}_low": _short(found.low), f"{what}_high": _short(found.high)}


_short = partial(round, ndigits=6)
