"""Asking until it is decided: what is missing is waited for, and then it is asked again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from lora_contract.errors import RegistryError
from lora_contract.wire.gates import GateView
from lora_contract.wire.jobs import JobView
from lora_reg.jobs import require_done

A = TypeVar("A")

ROUNDS: Final = 8
"""The tag's holder may change while one waits, and then another version has to be measured."""


def until_decided(ask: Callable[[], A], gate_of: Callable[[A], GateView], wait: Callable[[str], JobView]) -> A:
    """The first answer that is not pending. wait: for a job, by its id. Raises what made a validation fail."""
    for _ in range(ROUNDS):
        answer = ask()
        view = gate_of(answer)
        if view.allowed is not None or not view.jobs:
            return answer
        for job in view.jobs:
            require_done(job if job.state == "done" else wait(job.id))
    raise RegistryError(
        "pending", f"After {ROUNDS} rounds of validations it was still not decided.", hint="Ask once more."
    )
