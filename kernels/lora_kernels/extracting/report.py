"""What an extraction found: of each module, and of all that an adapter cannot hold."""

from __future__ import annotations

import msgspec

from lora_kernels.checkpoint.records import FileRecord


class ExtractedModule(msgspec.Struct, frozen=True):
    """A module of the adapter, D its change. Norms are Frobenius norms.

    kept_energy: 1 - residual_norm^2 / change_norm^2, of the factors as they are stored. residual_norm: ||D - B A||.
    relative_change: ||D|| / ||W||, None if W is zero. exact: the decomposition was the exact one; else the
    randomized one, whose residual is a little above the best one where the spectrum hardly falls.
    """

    module: str
    tensor: str
    rank: int
    kept_energy: float
    change_norm: float
    residual_norm: float
    relative_change: float | None
    exact: bool


class UnheldChange(msgspec.Struct, frozen=True):
    """A tensor that differs from the base and that the low-rank factors do not hold.

    reason: why not. saved: whether it is stored whole, by modules_to_save or as a trained bias.
    """

    tensor: str
    reason: str
    saved: bool
    change_norm: float
    relative_change: float | None


class ExtractReport(msgspec.Struct, frozen=True):
    """What `extract` did.

    kept_energy: over all modules; None if no module changed. unheld: sorted by tensor. identical: tensors that did
    not change. derived: tensors of one side alone that follow from the config.
    """

    rank: int
    kept_energy: float | None
    modules: tuple[ExtractedModule, ...]
    unheld: tuple[UnheldChange, ...]
    identical: int
    derived: tuple[str, ...]
    files: tuple[FileRecord, ...]

    @property
    def dropped(self) -> tuple[UnheldChange, ...]:
        """Changes that the adapter lacks."""
        return tuple(change for change in self.unheld if not change.saved)
