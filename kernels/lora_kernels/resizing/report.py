"""Approximation errors of rewritten adapters. Norms are Frobenius norms of s B A; errors are of the stored factors."""

from __future__ import annotations

import msgspec

from lora_kernels.checkpoint.records import FileRecord
from lora_kernels.devices.choice import Execution


class ResizedModule(msgspec.Struct, frozen=True):
    """relative_error: ||dW - dW_new|| / ||dW||; kept_energy: 1 minus its square. For a zero update they are 0 and 1."""

    module: str
    rank_before: int
    rank: int
    update_norm: float
    kept_energy: float
    relative_error: float


class ResizeReport(msgspec.Struct, frozen=True):
    """rank: the largest. kept_energy, relative_error: over all modules. dropped: modules with a zero update, which got
    no factors. extras: tensors other than factors, copied unchanged. execution: the device that computed it."""

    rank: int
    kept_energy: float
    relative_error: float
    modules: tuple[ResizedModule, ...]
    dropped: tuple[str, ...]
    extras: tuple[str, ...]
    files: tuple[FileRecord, ...]
    execution: Execution = Execution()


class ConvertedModule(msgspec.Struct, frozen=True):
    """scale: folded into B. rank: of the factors, without padding. relative_error: as in `ResizedModule`; 0 if the
    product is stored exactly, else the effect of one rounding of B."""

    module: str
    rank: int
    scale: float
    relative_error: float


class ConvertReport(msgspec.Struct, frozen=True):
    """rank: the largest; with `uniform_rank` all modules are stored with it. exact: no product changed.
    relative_error: the largest. dropped, extras: as in `ResizeReport`."""

    rank: int
    exact: bool
    relative_error: float
    modules: tuple[ConvertedModule, ...]
    dropped: tuple[str, ...]
    extras: tuple[str, ...]
    files: tuple[FileRecord, ...]
