"""What a layer that found nothing had looked at, in one sentence: for people who read a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lora_contract.validation import Layer, LayerResult

_TASKS: Final = 4


def looked_at(layer: Layer, result: LayerResult) -> str:
    """A report keeps facts as JSON values, of whatever suite wrote it: what a sentence needs may be missing."""
    try:
        return _SENTENCES[layer](result.facts)
    except (KeyError, TypeError, ValueError):
        return "Nothing was found."


def _structure(facts: dict[str, Any]) -> str:
    rank = f", of rank {facts['max_rank']} at most" if facts.get("max_rank") else ""
    return f"{facts['tensors']} tensors that fit the base{rank}."


def _tokenizer(facts: dict[str, Any]) -> str:
    own = facts["brings"]
    return (
        "Its own tokenizer reads as the base's does." if own else "It brings no tokenizer, and is read with the base's."
    )


def _serveability(facts: dict[str, Any]) -> str:
    able = [name for name, state in facts["runtimes"].items() if state["state"] == "serves"]
    return f"As it is, {', '.join(able)} can serve it." if able else "No server that is known can serve it as it is."


def _numbers(facts: dict[str, Any]) -> str:
    shares = [row["share"] for row in facts["modules"] if row["share"] is not None]
    if not shares:
        return "It has no updates of weights."
    return f"{len(facts['modules'])} updates; the largest has {max(shares):.2g} of the norm of its weight."


def _effect(facts: dict[str, Any]) -> str:
    return f"All {facts['keys']} keys took effect; its outputs are {facts['divergence']:.2g} nats from the base's."


def _agreement(facts: dict[str, Any]) -> str:
    told = [f"{name} {found['divergence']:.0e}" for name, found in facts["forms"].items() if "divergence" in found]
    return f"Merged and unmerged differ by nats: {'; '.join(told)}." if told else "It has no merged form."


def _losses(facts: dict[str, Any]) -> str:
    told = [f"{found['loss']:.4f} on {name}, of the base {found['base']:.4f}" for name, found in facts.items()]
    return f"Loss {'; '.join(told)}."


def _behaviour(facts: dict[str, Any]) -> str:
    """By set of prompts, a count; by task and metric, its value and the base's."""
    answers = [f"{met} answers of {name}" for name, met in facts.items() if not isinstance(met, dict)]
    tasks = [
        f"{name} is {_figure(found['value'])}, of the base {_figure(found['base'])}"
        for name, found in facts.items()
        if isinstance(found, dict)
    ]
    more = [f"{len(tasks) - _TASKS} more of tasks"] if len(tasks) > _TASKS else []
    told = [*([f"As expected were {', '.join(answers)}"] if answers else []), *tasks[:_TASKS], *more]
    return f"{'; '.join(told)}."


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
