"""The evidence of a layer without findings, in one sentence for display."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lora_contract.validation import Layer, LayerResult

_TASKS: Final = 4


def describe_evidence(layer: Layer, result: LayerResult) -> str:
    """Describe the facts of a layer. They are JSON values, of whichever suite wrote the report: some may be missing."""
    try:
        return _SENTENCES[layer](result.facts)
    except (KeyError, TypeError, ValueError):
        return "No findings."


def _structure(facts: dict[str, Any]) -> str:
    rank = f"; the largest rank is {facts['max_rank']}" if facts.get("max_rank") else ""
    return f"{facts['tensors']} tensors fit the base{rank}."


def _tokenizer(facts: dict[str, Any]) -> str:
    own = facts["brings"]
    return "Its tokenizer agrees with the base's." if own else "It has no tokenizer of its own; the base's is used."


def _serveability(facts: dict[str, Any]) -> str:
    able = [name for name, state in facts["runtimes"].items() if state["state"] == "serves"]
    return f"Servable on {', '.join(able)}." if able else "Not servable on any known server without conversion."


def _numbers(facts: dict[str, Any]) -> str:
    shares = [row["share"] for row in facts["modules"] if row["share"] is not None]
    if not shares:
        return "It updates no weights."
    return f"{len(facts['modules'])} updates; the largest has {max(shares):.2g} times the norm of its weight."


def _effect(facts: dict[str, Any]) -> str:
    return (
        f"All {facts['keys']} keys took effect; its outputs diverge from the base's by {facts['divergence']:.2g} nats."
    )


def _agreement(facts: dict[str, Any]) -> str:
    forms = [f"{name} {found['divergence']:.0e}" for name, found in facts["forms"].items() if "divergence" in found]
    return f"Divergence of merged and unmerged, in nats: {'; '.join(forms)}." if forms else "It has no merged form."


def _losses(facts: dict[str, Any]) -> str:
    losses = [f"{found['loss']:.4f} on {name} (base: {found['base']:.4f})" for name, found in facts.items()]
    return f"Loss {'; '.join(losses)}."


def _behaviour(facts: dict[str, Any]) -> str:
    """Facts: a count for each set of prompts; the value and the base's for each metric of a task."""
    answers = [f"{met} answers of {name}" for name, met in facts.items() if not isinstance(met, dict)]
    tasks = [
        f"{name} is {_figure(found['value'])} (base: {_figure(found['base'])})"
        for name, found in facts.items()
        if isinstance(found, dict)
    ]
    more = [f"{len(tasks) - _TASKS} more task metrics"] if len(tasks) > _TASKS else []
    parts = [*([f"As expected: {', '.join(answers)}"] if answers else []), *tasks[:_TASKS], *more]
    return f"{'; '.join(parts)}."


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


_SENTENCES: Final[dict[Layer, Callable[[dict[str, Any]], str]]] = {
    "structure": _structure,
    "tokenizer": _tokenizer,
    "serveability": _serveability,
    "numbers": _numbers,
    "effect": _effect,
    "agreement": _agreement,
    "quality": _losses,
    "forgetting": _losses,
    "behaviour": _behaviour,
}
