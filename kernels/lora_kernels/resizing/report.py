"""What rewriting an adapter cost, module by module. Norms are Frobenius norms of s B A; losses are those of the factors
as they are stored."""

from __future__ import annotations

import msgspec

from lora_kernels.checkpoint.records import FileRecord


class ResizedModule(msgspec.Struct, frozen=True):
    """relative_error: ||dW - dW_new|| / ||dW||; kept_energy: 1 minus its square. 0 and 1 of a module without effect."""

    module: str
    rank_before: int
    rank: int
    update_norm: float
    kept_energy: float
    relative_error: float


class ResizeReport(msgspec.Struct, frozen=True):
    """rank: the largest. kept_energy, relative_error: over all modules. dropped: modules that were without any effect
    and got no factors. extras: tensors that were no factors and went over as they were."""

    rank: int
    kept_energy: float
    relative_error: float
    modules: tuple[ResizedModule, ...]
    dropped: tuple[str, ...]
    extras: tuple[str, ...]
    files: tuple[FileRecord, ...]


class ConvertedModule(msgspec.Struct, frozen=True):
    """scale: that was folded into B. rank: of the factors, zeros of a uniform rank not counted. relative_error: as of
    ResizedModule; 0 if the same product is stored exactly, one rounding of B else."""

    module: str
    rank: int
    scale: float
    relative_error: float


class ConvertReport(msgspec.Struct, frozen=True):
    """rank: the largest, which with `uniform_rank` all modules are stored with. exact: no product changed.
    relative_error: the largest. dropped, extras: as of ResizeReport."""

    rank: int
    exact: bool
    relative_error: float
    modules: tuple[ConvertedModule, ...]
    dropped: tuple[str, ...]
    extras: tuple[str, ...]
    files: tuple[FileRecord, ...]
