"""What is asked of the registry's workers: new versions, derived from others."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from lora_contract.recipe import MergedDtype, Onto, OutputDtype, ParameterValue, Rounding
from lora_contract.wire.common import Request

Rank: TypeAlias = Annotated[int, Meta(ge=1, le=2**20)]
Share: TypeAlias = Annotated[float, Meta(gt=0, le=1)]
Seed: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class DeriveRequest(Request, frozen=True):
    """What all of them have. to: `namespace/name` of the repository that the result becomes a version of.

    tags: set on the result in the transaction that commits it.
    """

    to: str
    tags: list[str] = []
    message: str = ""


class WeightedAdapter(Request, frozen=True):
    adapter: str
    weight: float = 1.0


class MergeRequest(DeriveRequest, frozen=True, kw_only=True):
    """Adapters into their base: a version of kind `model`.

    base None: the base that the first adapter pins. dtype None: each tensor keeps its own. onto: `nf4` adds to what NF4
    makes of the base, as QLoRA trained it. seed: of stochastic rounding.
    """

    adapters: list[WeightedAdapter]
    base: str | None = None
    dtype: MergedDtype | None = None
    allow_loss: bool = False
    onto: Onto = "fp"
    rounding: Rounding = "nearest"
    seed: Seed = 0


class ComposeRequest(DeriveRequest, frozen=True, kw_only=True):
    """Adapters of one base into one adapter. method, parameters: of `lora_contract.methods`; what is not given has its
    default. dtype None: the widest of the inputs'."""

    adapters: list[WeightedAdapter]
    method: str
    parameters: dict[str, ParameterValue] = {}
    seed: Seed = 0
    dtype: OutputDtype | None = None


class ExtractRequest(DeriveRequest, frozen=True, kw_only=True):
    """The difference between a fine-tune and its base as an adapter of that base.

    tuned: a version of kind `model` or `base`. rank, or keep_energy (0 to 1) with max_rank: one of the two. targets:
    names of modules, or a pattern; None: all linear layers. save_changed: keep whole what factors cannot hold.
    """

    tuned: str
    base: str
    rank: Rank | None = None
    keep_energy: Share | None = None
    max_rank: Rank | None = None
    targets: list[str] | str | None = None
    save_changed: bool = False
    seed: Seed = 0
    dtype: OutputDtype = "float32"


class ResizeRequest(DeriveRequest, frozen=True, kw_only=True):
    """An adapter at another rank, or for each module the least that keeps this share of its energy: one of the two."""

    adapter: str
    rank: Rank | None = None
    keep_energy: Share | None = None
    dtype: OutputDtype | None = None


class ConvertRequest(DeriveRequest, frozen=True, kw_only=True):
    """An adapter as plain LoRA with the same product. uniform_rank: one rank for all modules, filled up with zeros."""

    adapter: str
    uniform_rank: bool = False
    dtype: OutputDtype | None = None


class DiffRequest(Request, frozen=True):
    """`POST /diffs`: a job whose report, on `after`, compares two adapters module by module."""

    before: str
    after: str


class ReproduceRequest(Request, frozen=True):
    """`POST /reproductions`: a job that runs a version's recipe again and compares digests; no version is made."""

    version: str
