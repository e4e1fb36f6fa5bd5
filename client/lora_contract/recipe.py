"""Recipes: all that determines a derived artifact. The digest of a recipe is the identity of its job.

Not in it: who asked, when, on which machine or backend. Two requests with equal recipes are one job and one result.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal, TypeAlias, get_args

import msgspec

from lora_contract import canonical
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError

Operation = Literal["merge", "compose", "extract", "resize", "convert"]
OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)

OutputDtype = Literal["bfloat16", "float16", "float32"]
OUTPUT_DTYPES: Final[tuple[OutputDtype, ...]] = get_args(OutputDtype)

MergedDtype = Literal["bfloat16", "float16", "float32", "nf4"]
MERGED_DTYPES: Final[tuple[MergedDtype, ...]] = get_args(MergedDtype)
"""What merged weights can be written as. nf4: of the linear layers, as bitsandbytes stores them."""

Onto = Literal["fp", "nf4"]
"""What an adapter is added to: the base's weights as they are, or what NF4 makes of them (as QLoRA trained it)."""

Rounding = Literal["nearest", "stochastic"]

Parameter: TypeAlias = bool | int | float | str
"""The value of a method's parameter."""


class RecipeInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter that goes in, by the digest of its version, with its weight in the sum."""

    digest: str
    weight: float = 1.0


class Derived(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="operation"):
    """A resolved recipe: digests, not names; every parameter with its default filled in.

    operation_version: grows where the same parameters come to mean another result. base: digest of the base version
    that goes in, or that the result is an adapter of. target: `namespace/name` of the repository that the result
    becomes a version of.
    """

    LATER: ClassVar[dict[str, Any]] = {}
    """Parameters that are younger than the operation's version: left out of the bytes where they hold the value that
    was meant before there were such parameters, so that old recipes keep their digests."""

    operation_version: int
    base: str
    target: str

    @property
    def operation(self) -> Operation:
        name: Operation = self.__struct_config__.tag  # type: ignore[assignment]
        return name

    def to_bytes(self) -> bytes:
        document = msgspec.to_builtins(self)
        for name, before in self.LATER.items():
            if document[name] == before:
                del document[name]
        return canonical.dumps(document)

    @property
    def digest(self) -> Digest:
        return Digest.of(self.to_bytes())


class MergeRecipe(Derived, frozen=True, tag="merge"):
    """Adapters into their base. inputs: in the order of the sum.

    dtype: of every touched tensor in the result, and of the others that have the checkpoint's main type; None to keep
    each tensor's own. seed: of stochastic rounding. allow_loss: also where rounding loses much of the adapter.
    """

    LATER: ClassVar[dict[str, Any]] = {"onto": "fp", "rounding": "nearest"}

    inputs: tuple[RecipeInput, ...]
    dtype: MergedDtype | None = None
    seed: int = 0
    allow_loss: bool = False
    onto: Onto = "fp"
    rounding: Rounding = "nearest"


class ComposeRecipe(Derived, frozen=True, tag="compose"):
    """Adapters of one base into one adapter. inputs: in the order of the sum.

    method, parameters: of `lora_contract.methods`, the parameters with their defaults filled in. dtype: of the
    result's factors; None for the widest of the inputs'.
    """

    inputs: tuple[RecipeInput, ...]
    method: str
    parameters: dict[str, Parameter | None]
    seed: int = 0
    dtype: OutputDtype | None = None


class ExtractRecipe(Derived, frozen=True, tag="extract"):
    """The difference between a fine-tune and its base as an adapter. tuned: digest of the fine-tune's version.

    Either a rank for all modules, or for each the least rank that keeps this share of its change's energy, up to
    max_rank. targets: names of modules, or a pattern; None for all linear layers. save_changed: keep whole what factors
    cannot hold. base_name: what the adapter's config calls its base.
    """

    tuned: str
    base_name: str
    rank: int | None
    keep_energy: float | None
    max_rank: int | None
    targets: tuple[str, ...] | str | None
    save_changed: bool
    seed: int
    dtype: OutputDtype


class ResizeRecipe(Derived, frozen=True, tag="resize"):
    """An adapter at another rank, or for each module the least that keeps this share of its energy.

    adapter: digest of its version. dtype: None keeps the adapter's own.
    """

    adapter: str
    rank: int | None
    keep_energy: float | None
    dtype: OutputDtype | None


class ConvertRecipe(Derived, frozen=True, tag="convert"):
    """An adapter as plain LoRA with the same product. adapter: digest of its version.

    uniform_rank: one rank for all modules, by zeros, for engines that ignore patterns of ranks.
    """

    adapter: str
    uniform_rank: bool
    dtype: OutputDtype | None


Recipe: TypeAlias = MergeRecipe | ComposeRecipe | ExtractRecipe | ResizeRecipe | ConvertRecipe


def parse_recipe(data: bytes) -> Recipe:
    """Read canonical recipe bytes. Raises RegistryError `invalid-request`."""
    try:
        recipe: Recipe = msgspec.json.decode(data, type=Recipe)
    except msgspec.MsgspecError as error:
        raise RegistryError("invalid-request", f"The recipe is malformed: {error}.") from error
    return recipe


def sources(data: bytes) -> tuple[str, ...]:
    """Digests of the versions that go in beside the base, in order. Raises RegistryError `invalid-request`."""
    recipe = parse_recipe(data)
    match recipe:
        case MergeRecipe() | ComposeRecipe():
            return tuple(item.digest for item in recipe.inputs)
        case ExtractRecipe():
            return (recipe.tuned,)
        case ResizeRecipe() | ConvertRecipe():
            return (recipe.adapter,)
