"""What a composition did."""

from __future__ import annotations

import msgspec

from lora_contract.methods import Value
from lora_kernels.checkpoint.records import FileRecord


class ComposedModule(msgspec.Struct, frozen=True):
    """adapters: indices of the inputs that adapt the module. rank: of the result; 0 if nothing was left, and the
    module got no factors. kept: the part of the squared norm of what the method asks for that the rank holds; None of
    methods that work on A and B apart, which ask for no product. Of `tsv` and `iso_c`, which change singular values:
    what their vectors held before."""

    module: str
    adapters: tuple[int, ...]
    rank: int
    kept: float | None


class ComposeReport(msgspec.Struct, frozen=True):
    """parameters: with defaults filled in; `rank` as it was asked for. seed: None of methods that draw nothing. rank:
    the largest. kept: over all modules, see ComposedModule. ignored: tensors that change nothing and were left out
    knowingly, as `index:name`."""

    method: str
    version: int
    parameters: dict[str, Value]
    seed: int | None
    rank: int
    kept: float | None
    modules: tuple[ComposedModule, ...]
    ignored: tuple[str, ...]
    files: tuple[FileRecord, ...]
