"""Facts and findings from the contributions of modules. The thresholds rest on measurements in docs/validation.md.

Reports call a gradient `pull`, a gain at α = 1/2 `help`, and an ablation `without`.
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

# Nats per token: a module whose ablation lowers the loss by at least this much is an error.
HARM: Final = 0.01
# If the joint gradient of the other modules exceeds this multiple of the loss decrease without the worst one, the whole
# update is too strong.
OTHERS: Final = 5
# Share of the median gain: a suspect whose interval ends below it, and whose ablation raises the loss by no more, adds
# nothing.
IDLE: Final = 0.12
# If more than this share of the active modules is suspect, and the loss does not rise without them, the adapter was
# trained on another base.
WRONG_BASE: Final = 0.4
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
    """At most one finding: a fault of the whole adapter shows in its modules as well."""
    # An adapter worse than the base is refused for its losses; its single modules then say little.
    checks = (_wrong_base, _harmful, _too_strong, _idle) if found.gain > 0 else (_too_strong,)
    return next(([finding] for check in checks if (finding := check(found)) is not None), [])


def _wrong_base(found: Contributions) -> Finding | None:
    names, count = found.suspects, _active(found)
    rise = found.ablation.get(names)
    if len(names) <= max(WRONG_BASE * count, 2) or rise is None or rise.mean > found.least:
        return None
    direction = "higher" if rise.mean > 0 else "lower"
    return Finding(
        "modules-do-not-help",
        "error",
        f"{len(names)} of {count} modules do not lower the loss, as if they were trained on another base: "
        f"{_names(names)}. Without them it is {direction} by {abs(rise.mean):.4f} nats per token "
        f"({rise.records} records).",
        where=names[0],
        hint="Check which base it was trained on, and push it against that one.",
    )


def _harmful(found: Contributions) -> Finding | None:
    alone = _single(found)
    names = [name for name, rise in alone.items() if rise.high < 0 and rise.mean <= -found.least]
    if not names:
        return None
    names.sort(key=lambda name: alone[name].mean)
    worst = alone[names[0]]
    if found.joint_gradient([name for name in found.gradient if name not in names]).mean > OTHERS * -worst.mean:
        return None
    also = f"; likewise without {_names(names[1:])}" if names[1:] else ""
    return Finding(
        "module-pulls-back",
        "error" if worst.mean <= -HARM else "warning",
        f"Without {names[0]} the loss would be lower by {-worst.mean:.4f} nats per token "
        f"({-worst.high:.4f} to {-worst.low:.4f} at {worst.level:.0%}, {worst.records} records){also}. "
        "Its sign or its scale is suspect.",
        where=names[0],
        hint="Export it again, and compare the file with the one that the training wrote.",
    )


def _too_strong(found: Contributions) -> Finding | None:
    together = found.joint_gradient(list(found.gradient))
    if together.low < found.least:
        return None
    return Finding(
        "update-too-strong",
        "warning",
        f"Scaling the whole adapter down by a tenth would lower the loss by {together.mean / 10:.4f} nats per token "
        f"({together.low / 10:.4f} to {together.high / 10:.4f} at {together.level:.0%}, {together.records} records): "
        "its scale is larger than in training, or it was trained for too long on too little data.",
        hint="Check alpha and rsLoRA in the config, or stop the training earlier.",
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
        f"{len(names)} of {_active(found)} modules change the outputs but do not lower the loss: {_names(names)}.",
        where=names[0],
        hint="Compare the file with the one that the training wrote: their factors may be swapped.",
    )


def _active(found: Contributions) -> int:
    return len(found.gradient) - len(found.inactive)


def _single(found: Contributions) -> dict[str, Interval]:
    """Ablations of single modules."""
    return {names[0]: rise for names, rise in found.ablation.items() if len(names) == 1}


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _fields(key: str, found: Interval) -> Facts:
    return {key: _short(found.mean), f"{key}_low": _short(found.low), f"{key}_high": _short(found.high)}


_short = partial(round, ndigits=6)
