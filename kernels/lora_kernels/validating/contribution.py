"""Facts and findings from the contributions of modules. The thresholds rest on the figures of docs/validation.md.

In a report a gradient is called `pull`, a gain at α = 1/2 `help`, and an ablation `without`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Final

from lora_contract.findings import Finding
from lora_contract.statistics import Interval
from lora_contract.validation import Facts
from lora_kernels.validating.module_ablation import Contributions

# Nats per token by which the loss falls when a module is ablated, from which that is an error.
HARM: Final = 0.01
# Times the fall of the loss without the worst module: if the joint gradient of the others is larger, the whole update
# is too strong.
OTHERS: Final = 5
# Of the median gain: a suspect whose interval ends below this, and whose ablation raises the loss by no more than this,
# adds nothing.
IDLE: Final = 0.12
# Share of suspects among the active modules, from which the adapter is of another base, if the loss does not rise
# without them.
ASTRAY: Final = 0.4
_SHOWN: Final = 3


def facts(found: Contributions) -> Facts:
    together = found.joint_gradient(list(found.gradient))
    return {
        "records": together.records,
        "gain": _short(found.gain),
        "together": _fields("pull", together),
        "modules": [
            {"module": name, **_fields("pull", gradient), **_fields("help", found.gain_at_half[name])}
            for name, gradient in found.gradient.items()
        ],
        "without": [{"modules": list(names), **_fields("loss", rise)} for names, rise in found.ablation.items()],
    }


def findings(found: Contributions) -> list[Finding]:
    """At most one: what is wrong with the whole shows in its modules as well."""
    # Worse than the base, it is refused for its losses, and what single modules do there says little.
    looks = (_astray, _against, _too_strong, _idle) if found.gain > 0 else (_too_strong,)
    return next(([finding] for look in looks if (finding := look(found)) is not None), [])


def _astray(found: Contributions) -> Finding | None:
    names, count = found.suspects, _active(found)
    rise = found.ablation.get(names)
    if len(names) <= max(ASTRAY * count, 2) or rise is None or rise.mean > found.least:
        return None
    way = "higher" if rise.mean > 0 else "lower"
    return Finding(
        "modules-do-not-help",
        "error",
        f"{len(names)} of {count} modules do not lower the loss, as if they were trained for another base: "
        f"{_names(names)}. Without them it is {way} by {abs(rise.mean):.4f} nats per token "
        f"({rise.records} records).",
        where=names[0],
        hint="Look which base it was trained on, and push it against that one.",
    )


def _against(found: Contributions) -> Finding | None:
    alone = _single(found)
    names = [name for name, rise in alone.items() if rise.high < 0 and rise.mean <= -found.least]
    if not names:
        return None
    names.sort(key=lambda name: alone[name].mean)
    worst = alone[names[0]]
    if found.joint_gradient([name for name in found.gradient if name not in names]).mean > OTHERS * -worst.mean:
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


def _too_strong(found: Contributions) -> Finding | None:
    together = found.joint_gradient(list(found.gradient))
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


def _idle(found: Contributions) -> Finding | None:
    alone = _single(found)
    gains = [gain.mean for name, gain in found.gain_at_half.items() if name not in found.inactive]
    bound = IDLE * median(gains or [0.0])
    names = [
        name
        for name in found.suspects
        if found.gain_at_half[name].high <= bound and name in alone and alone[name].mean <= bound
    ]
    if not names:
        return None
    return Finding(
        "module-adds-nothing",
        "warning",
        f"{len(names)} of {_active(found)} modules change the outputs and do not lower the loss: {_names(names)}.",
        where=names[0],
        hint="Compare the file with what the training wrote: their halves may be exchanged.",
    )


def _active(found: Contributions) -> int:
    return len(found.gradient) - len(found.inactive)


def _single(found: Contributions) -> dict[str, Interval]:
    """Ablations of single modules."""
    return {names[0]: rise for names, rise in found.ablation.items() if len(names) == 1}


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _fields(what: str, found: Interval) -> Facts:
    return {what: _short(found.mean), f"{what}_low": _short(found.low), f"{what}_high": _short(found.high)}


_short = partial(round, ndigits=6)
