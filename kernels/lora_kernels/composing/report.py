"""Report of a composition."""

from __future__ import annotations

import msgspec

from lora_contract.methods import Value
from lora_kernels.checkpoint.records import FileRecord
from lora_kernels.devices.choice import Execution


class ComposedModule(msgspec.Struct, frozen=True):
    """A module of the result.

    Args:
        adapters: indices of the inputs that adapt the module.
        rank: 0 if the result is zero, and the module has no factors.
        kept: share of the squared norm of the exact result that the rank keeps. None for methods on A and B separately,
            which define no product. For `tsv` and `iso_c`, which change singular values, the share before that.
    """

    module: str
    adapters: tuple[int, ...]
    rank: int
    kept: float | None


class ComposeReport(msgspec.Struct, frozen=True):
    """Report of a composition.

    Args:
        parameters: with defaults; `rank` as requested.
        seed: None for methods without randomness.
        rank: the largest of all modules.
        kept: over all modules; see `ComposedModule`.
        ignored: tensors that change nothing, as `index:name`.
        execution: the device that computed it.
    """

    method: str
    version: int
    parameters: dict[str, Value]
    seed: int | None
    rank: int
    kept: float | None
    modules: tuple[ComposedModule, ...]
    ignored: tuple[str, ...]
    files: tuple[FileRecord, ...]
    execution: Execution = Execution()
