"""The accepted tensors of an adapter, by what they are."""

from __future__ import annotations

import msgspec

from lora_contract.adapter.groups import AdaptedModule
from lora_contract.base import BaseTensor
from lora_contract.tensors import TensorEntry


class Structure(msgspec.Struct):
    """Every accepted tensor by what it is.

    Args:
        names: of the modules that PEFT saves.
        groups: by (module path, nesting).
        saved: full tensors of modules_to_save.
        copies: tensors that must equal the named base tensor bit by bit.
        originals: the base's own modules beside saved ones.
        twins: second copies of saved tensors, each with the saved one.
        biases: trained biases that replace the base's.
        tokens: rows that replace rows, of the embeddings in token_modules.
        resized: tensors of an embedding or output layer with another number of rows than the base's tensor.
    """

    names: tuple[str, ...] = ()
    groups: dict[tuple[str, int], AdaptedModule] = {}
    saved: list[TensorEntry] = []
    copies: list[tuple[TensorEntry, BaseTensor]] = []
    originals: list[tuple[TensorEntry, BaseTensor]] = []
    twins: list[tuple[TensorEntry, TensorEntry]] = []
    resized: list[tuple[TensorEntry, BaseTensor]] = []
    biases: list[TensorEntry] = []
    tokens: list[TensorEntry] = []
    token_modules: list[str] = []
    globals_: list[TensorEntry] = []
