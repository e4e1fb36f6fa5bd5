"""Recipes: everything that determines a derived artifact. The digest of a recipe is the identity of its job.

A recipe excludes the requester, the time and the machine: two requests with equal recipes share one job and one result.
It includes the device, since a GPU's sums may differ in their last bits.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal, TypeAlias, get_args

import msgspec

from lora_contract import canonical, decoding
from lora_contract.devices import RecipeDevice
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.vocabulary import NewRows

Operation = Literal["merge", "compose", "extract", "resize", "convert", "resize-base"]
OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)

OutputDtype = Literal["bfloat16", "float16", "float32"]
OUTPUT_DTYPES: Final[tuple[OutputDtype, ...]] = get_args(OutputDtype)

MergedDtype = Literal["bfloat16", "float16", "float32", "nf4"]
MERGED_DTYPES: Final[tuple[MergedDtype, ...]] = get_args(MergedDtype)
"""Output dtypes of merged weights. nf4: the linear layers, in the format of bitsandbytes."""

Onto = Literal["fp", "nf4"]
"""The weights that an adapter is added to: the full-precision base, or its NF4-dequantized weights (QLoRA)."""

Rounding = Literal["nearest", "stochastic"]

ParameterValue: TypeAlias = bool | int | float | str


class RecipeInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input adapter. digest: of its version. weight: in the sum."""

    digest: str
    weight: float = 1.0


class Derived(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="operation"):
    """A resolved recipe: digests, not names; every parameter with its default filled in.

    Args:
        operation_version: incremented when the same parameters give another result.
        base: digest of the base version.
        target: `namespace/name` of the repository that receives the result.
    """

    LATER: ClassVar[dict[str, Any]] = {}
    """Parameters added after the operation's version was set, with the value that was implied before. They are omitted
    from the bytes if they have that value, so that old recipes keep their digests."""

    operation_version: int
    base: str
    target: str

    @property
    def operation(self) -> Operation:
        name: Operation = self.__struct_config__.tag  # type: ignore[assignment]
        return name

    def to_bytes(self) -> bytes:
        document = msgspec.to_builtins(self)
        for name, implied in self.LATER.items():
            if document[name] == implied:
                del document[name]
        return canonical.dumps(document)

    @property
    def digest(self) -> Digest:
        return Digest.of(self.to_bytes())


class MergeRecipe(Derived, frozen=True, tag="merge"):
    """Merge adapters into their base.

    Args:
        inputs: in the order of the sum.
        dtype: of every merged tensor, and of the other tensors that have the checkpoint's main dtype; None: unchanged.
        seed: for stochastic rounding.
        allow_loss: allow a merge in which rounding discards more than half of the update.
        device: that computes.
    """

    LATER: ClassVar[dict[str, Any]] = {"onto": "fp", "rounding": "nearest", "device": "cpu"}

    inputs: tuple[RecipeInput, ...]
    dtype: MergedDtype | None = None
    seed: int = 0
    allow_loss: bool = False
    onto: Onto = "fp"
    rounding: Rounding = "nearest"
    device: RecipeDevice = "cpu"


class ComposeRecipe(Derived, frozen=True, tag="compose"):
    """Compose adapters of one base into one adapter.

    Args:
        inputs: in the order of the sum.
        method, parameters: of `lora_contract.methods`, with defaults filled in.
        dtype: of the result's factors; None: the widest dtype of the inputs.
        device: that computes.
    """

    LATER: ClassVar[dict[str, Any]] = {"device": "cpu"}

    inputs: tuple[RecipeInput, ...]
    method: str
    parameters: dict[str, ParameterValue | None]
    seed: int = 0
    dtype: OutputDtype | None = None
    device: RecipeDevice = "cpu"


class ExtractRecipe(Derived, frozen=True, tag="extract"):
    """Extract the difference between a fine-tune and its base as an adapter.

    Args:
        tuned: digest of the fine-tune's version.
        base_name: `base_model_name_or_path` of the adapter's config.
        rank: of all modules; exclusive with `keep_energy`.
        keep_energy: for each module the smallest rank that keeps this share of its energy, up to `max_rank`.
        targets: names of modules, or a pattern; None: all linear layers.
        save_changed: store changed tensors that cannot be factorized in full.
        device: that computes.
    """

    LATER: ClassVar[dict[str, Any]] = {"device": "cpu"}

    tuned: str
    base_name: str
    rank: int | None
    keep_energy: float | None
    max_rank: int | None
    targets: tuple[str, ...] | str | None
    save_changed: bool
    seed: int
    dtype: OutputDtype
    device: RecipeDevice = "cpu"


class ResizeRecipe(Derived, frozen=True, tag="resize"):
    """Resize an adapter to another rank.

    Args:
        adapter: digest of its version.
        rank: of all modules; exclusive with `keep_energy`.
        keep_energy: for each module the smallest rank that keeps this share of its energy.
        dtype: None: unchanged.
    """

    adapter: str
    rank: int | None
    keep_energy: float | None
    dtype: OutputDtype | None


class ConvertRecipe(Derived, frozen=True, tag="convert"):
    """Convert an adapter to plain LoRA with the same product.

    adapter: digest of its version. uniform_rank: pad all modules with zeros to one rank, for engines that ignore
    rank_pattern.
    """

    adapter: str
    uniform_rank: bool
    dtype: OutputDtype | None


class ResizeBaseRecipe(Derived, frozen=True, tag="resize-base"):
    """Resize the vocabulary of a base: the result is a base.

    vocab: number of tokens. rows: those of new tokens; the mean of the old ones for tensors without.
    """

    vocab: int
    rows: tuple[NewRows, ...] = ()


Recipe: TypeAlias = MergeRecipe | ComposeRecipe | ExtractRecipe | ResizeRecipe | ConvertRecipe | ResizeBaseRecipe


def device_of(recipe: Recipe) -> RecipeDevice:
    """The device that computes a recipe; the CPU for operations without a choice."""
    match recipe:
        case MergeRecipe() | ComposeRecipe() | ExtractRecipe():
            return recipe.device
        case _:
            return "cpu"


def parse_recipe(data: bytes) -> Recipe:
    """Parse canonical recipe bytes. Raises RegistryError `invalid-request`."""
    try:
        recipe: Recipe = decoding.decode(data, Recipe)
    except msgspec.MsgspecError as error:
        raise RegistryError("invalid-request", f"The recipe is malformed: {error}.") from error
    return recipe


def sources(data: bytes) -> tuple[str, ...]:
    """Digests of the input versions other than the base, in order. Raises RegistryError `invalid-request`."""
    recipe = parse_recipe(data)
    match recipe:
        case MergeRecipe() | ComposeRecipe():
            return tuple(item.digest for item in recipe.inputs)
        case ExtractRecipe():
            return (recipe.tuned,)
        case ResizeRecipe() | ConvertRecipe():
            return (recipe.adapter,)
        case ResizeBaseRecipe():
            return ()
