"""Requests for jobs that derive new versions from others."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from lora_contract.devices import Device
from lora_contract.recipe import MergedDtype, Onto, OutputDtype, Rounding
from lora_contract.vocabulary import MAX_VOCABULARY, NewRows
from lora_contract.wire.common import Request, Text

Rank: TypeAlias = Annotated[int, Meta(ge=1, le=2**20)]
Share: TypeAlias = Annotated[float, Meta(gt=0, le=1)]
Seed: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class DeriveRequest(Request, frozen=True):
    """Fields of all requests. to: `namespace/name` of the repository that receives the result.

    tags: set on the result in the transaction that commits it.
    """

    to: Text
    tags: list[Text] = []
    message: Text = ""


class WeightedAdapter(Request, frozen=True):
    adapter: Text
    weight: float = 1.0


class MergeRequest(DeriveRequest, frozen=True, kw_only=True):
    """Merge adapters into their base, as a version of kind `model`.

    base None: the base that the first adapter pins. dtype None: unchanged. onto: `nf4` merges onto the base's
    NF4-dequantized weights (QLoRA). seed: for stochastic rounding. device: that computes; `auto` takes a GPU if a
    worker has one and the operation is likely to be faster there.
    """

    adapters: list[WeightedAdapter]
    base: Text | None = None
    dtype: MergedDtype | None = None
    allow_loss: bool = False
    onto: Onto = "fp"
    rounding: Rounding = "nearest"
    seed: Seed = 0
    device: Device = "cpu"


class ComposeRequest(DeriveRequest, frozen=True, kw_only=True):
    """Compose adapters of one base into one adapter. method, parameters: of `lora_contract.methods`; missing parameters
    get their defaults. dtype None: the widest dtype of the inputs. device: see `MergeRequest`; `cuda` is for dense
    methods."""

    adapters: list[WeightedAdapter]
    method: Text
    parameters: dict[Text, bool | int | float | Text] = {}
    seed: Seed = 0
    dtype: OutputDtype | None = None
    device: Device = "cpu"


class ExtractRequest(DeriveRequest, frozen=True, kw_only=True):
    """Extract the difference between a fine-tune and its base as an adapter of that base.

    tuned: a version of kind `model` or `base`. rank, or keep_energy (0 to 1) with max_rank: one of the two. targets:
    names of modules, or a pattern; None: all linear layers. save_changed: store what cannot be factorized in full.
    device: see `MergeRequest`.
    """

    tuned: Text
    base: Text
    rank: Rank | None = None
    keep_energy: Share | None = None
    max_rank: Rank | None = None
    targets: list[Text] | Text | None = None
    save_changed: bool = False
    seed: Seed = 0
    dtype: OutputDtype = "float32"
    device: Device = "cpu"


class ResizeRequest(DeriveRequest, frozen=True, kw_only=True):
    """Resize an adapter to a rank, or each module to the smallest rank that keeps this share of its energy."""

    adapter: Text
    rank: Rank | None = None
    keep_energy: Share | None = None
    dtype: OutputDtype | None = None


class ConvertRequest(DeriveRequest, frozen=True, kw_only=True):
    """Convert an adapter to plain LoRA with the same product. uniform_rank: pad all modules with zeros to one rank."""

    adapter: Text
    uniform_rank: bool = False
    dtype: OutputDtype | None = None


class ResizeBaseRequest(DeriveRequest, frozen=True, kw_only=True):
    """Resize the vocabulary of a base, as a base. rows: of new tokens; the mean of the old ones for tensors without."""

    base: Text
    vocab: Annotated[int, Meta(ge=1, le=MAX_VOCABULARY)]
    rows: list[NewRows] = []


class DiffRequest(Request, frozen=True):
    """`POST /diffs`: a job whose report, on `after`, compares two adapters module by module."""

    before: Text
    after: Text


class ReproduceRequest(Request, frozen=True):
    """`POST /reproductions`: a job that runs a version's recipe again and compares digests; no version is made."""

    version: Text
