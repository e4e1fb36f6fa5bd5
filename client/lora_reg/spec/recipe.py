"""Recipes: all that determines a derived artifact. The digest of a recipe is the identity of its job.

Not in it: who asked, when, on which machine or backend. Two requests with equal recipes are one job and one result.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from lora_reg.spec import canonical
from lora_reg.spec.digest import Digest
from lora_reg.spec.errors import RegistryError

Operation = Literal["merge"]
OutputDtype = Literal["bfloat16", "float16", "float32"]
OUTPUT_DTYPES: tuple[str, ...] = ("bfloat16", "float16", "float32")


class RecipeInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter that goes in, by the digest of its version, with its weight in the sum."""

    digest: str
    weight: float = 1.0


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A resolved recipe: digests, not names; every parameter with its default filled in.

    base: digest of the base version. inputs: in the order of the sum. dtype: of every touched tensor in the result, and
    of the others that have the checkpoint's main type; None to keep each tensor's own. target: `namespace/name` of the
    repository that the result becomes a version of. allow_loss: also where rounding loses much of the adapter.
    """

    operation: Operation
    operation_version: int
    base: str
    inputs: tuple[RecipeInput, ...]
    target: str
    dtype: OutputDtype | None = None
    seed: int = 0
    allow_loss: bool = False

    def to_bytes(self) -> bytes:
        return canonical.dumps(msgspec.to_builtins(self))

    @property
    def digest(self) -> Digest:
        return Digest.of(self.to_bytes())


def parse_recipe(data: bytes) -> Recipe:
    """Read canonical recipe bytes. Raises RegistryError `invalid-request`."""
    try:
        return msgspec.json.decode(data, type=Recipe)
    except msgspec.MsgspecError as error:
        raise RegistryError("invalid-request", f"The recipe is malformed: {error}.") from error
