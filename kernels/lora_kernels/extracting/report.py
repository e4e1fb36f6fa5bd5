"""Report of an extraction: its modules, and the changes that factors cannot represent."""

from __future__ import annotations

import msgspec

from lora_kernels.checkpoint.records import FileRecord
from lora_kernels.devices.choice import Execution


class ExtractedModule(msgspec.Struct, frozen=True):
    """A module of the adapter, D its change. Norms are Frobenius norms.

    kept_energy: 1 - residual_norm^2 / change_norm^2, of the stored factors. residual_norm: ||D - B A||.
    relative_change: ||D|| / ||W||; None if W is zero. exact: the decomposition was exact; a randomized one has a
    slightly larger residual if the spectrum is nearly flat.
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
    """A changed tensor that the low-rank factors do not represent.

    reason: why not. saved: whether it is stored in full, by modules_to_save or as a trained bias.
    """

    tensor: str
    reason: str
    saved: bool
    change_norm: float
    relative_change: float | None


class ExtractReport(msgspec.Struct, frozen=True):
    """Report of `extract`.

    kept_energy: over all modules; None if no module changed. unheld: sorted by tensor. identical: number of unchanged
    tensors. derived: tensors of one checkpoint only that are computed from the config. execution: the device.
    """

    rank: int
    kept_energy: float | None
    modules: tuple[ExtractedModule, ...]
    unheld: tuple[UnheldChange, ...]
    identical: int
    derived: tuple[str, ...]
    files: tuple[FileRecord, ...]
    execution: Execution = Execution()

    @property
    def dropped(self) -> tuple[UnheldChange, ...]:
        """Changes that the adapter does not contain."""
        return tuple(change for change in self.unheld if not change.saved)
