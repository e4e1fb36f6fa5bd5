"""What is asked of the registry's workers."""

from __future__ import annotations

from lora_reg.spec.recipe import OutputDtype
from lora_reg.spec.wire.common import Request


class MergeInput(Request, frozen=True):
    adapter: str
    weight: float = 1.0


class MergeRequest(Request, frozen=True):
    """base None: the base that the first adapter pins. to: `namespace/name` of the result, a repository of kind
    `model`. dtype None: each tensor keeps its own. tags: set on the result in the transaction that commits it."""

    adapters: list[MergeInput]
    to: str
    base: str | None = None
    dtype: OutputDtype | None = None
    tags: list[str] = []
    message: str = ""
    allow_loss: bool = False
