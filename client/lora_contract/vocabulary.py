"""Bases with another number of tokens: which tensors have a row for each, and the rows that a file gives for new ones.

The rules are those of `resize_token_embeddings` of transformers: input embedding, output layer and its bias.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec

from lora_contract.adapter.files import ReadFile
from lora_contract.adapter.names import PREFIX
from lora_contract.adapter.saved import unwrapped
from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.modules import is_output_name, modules_of
from lora_contract.pipelines import is_of_diffusers
from lora_contract.tensors import DTYPE_BYTES, FLOAT_DTYPES, Header, TensorEntry

MAX_VOCABULARY: Final = 1 << 24
MAX_ROWS_BYTES: Final = 640 << 10
"""Of rows that are given to a job: they are part of its recipe, and a request holds 1 MiB."""

_KEYS: Final = ("vocab_size", "n_words")
_PREFERRED: Final = ("original_module", "base_layer", None)
"""Of the tensors that an adapter stores for a layer, those that hold the base's own rows come first."""


class NewRows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows to append to a tensor of the base. data: base64 of their values, little-endian."""

    tensor: Annotated[str, msgspec.Meta(max_length=4096)]
    dtype: Annotated[str, msgspec.Meta(max_length=16)]
    data: Annotated[str, msgspec.Meta(max_length=MAX_ROWS_BYTES * 4 // 3 + 4)]

    def bytes(self) -> bytes:
        try:
            return base64.b64decode(self.data, validate=True)
        except ValueError as error:
            raise RegistryError("invalid-request", f"The rows of {self.tensor} are not base64.") from error


def check_size(rows: Sequence[NewRows]) -> None:
    """Raises RegistryError `too-large` if a job does not take as many rows."""
    size = sum(len(given.data) // 4 * 3 - given.data[-2:].count("=") for given in rows)
    if size > MAX_ROWS_BYTES:
        raise RegistryError(
            "too-large",
            f"The rows have {size} bytes; a job takes at most {MAX_ROWS_BYTES}.",
            hint="Use `lora-reg base resize --local DIR`, and add the result with `lora-reg base add`.",
        )


def vocabulary_tensors(base: BaseFingerprint) -> tuple[BaseTensor, ...]:
    """The tensors with a row for each token, the input embedding first.

    Raises RegistryError `unsupported` if there is no embedding, or none that is stored in floating point.
    """
    if is_of_diffusers(base.config):
        raise RegistryError(
            "unsupported",
            f"The base is a diffusion model ({base.architecture}), which has no vocabulary to resize.",
            hint="Resize its text encoder with transformers, and add the pipeline with `lora-reg base add`.",
        )
    modules = modules_of(base)
    embedding = modules.input_embedding()
    weight = embedding.weight if embedding is not None else None
    if weight is None or len(weight.shape) != 2 or weight.dtype not in FLOAT_DTYPES:
        raise RegistryError(
            "unsupported",
            f"The input embedding of {base.architecture or 'this base'} is unknown, or not stored in floating point.",
            hint="Resize the model with transformers (resize_token_embeddings) and add it with `lora-reg base add`.",
        )
    rows, found = weight.shape[0], {weight.name: weight}
    known = modules.sharing.output
    paths = (
        [known.rpartition(".")[0]] if known is not None else [path for path in modules.modules if is_output_name(path)]
    )
    for path in paths:
        output = modules.resolve(path)
        if output is None:
            continue
        parent = output.path.rpartition(".")[0]
        names = (f"{output.path}.weight", f"{output.path}.bias", f"{parent}.bias" if parent else "bias")
        for tensor in (modules.parameters.get(name) for name in names):
            if tensor is not None and tensor.shape[:1] == (rows,):
                found.setdefault(tensor.name, tensor)
    for group in modules.sharing.groups:
        tensors = [member.tensor for member in group.members if member.tensor is not None]
        if any(tensor.name in found for tensor in tensors):
            found |= {tensor.name: tensor for tensor in tensors if tensor.shape[:1] == (rows,)}
    others = [name for name in modules.parameters if name.endswith("final_logits_bias")]
    if others:
        raise RegistryError("unsupported", f"{others[0]} has a column for each token; only rows can be added.")
    return tuple(found.values())


def resized_config(config: Mapping[str, Any], rows: int, vocabulary: int) -> dict[str, Any]:
    """The config.json of the resized base. rows: of the base's embedding."""
    made = _replaced(config, rows, vocabulary)
    if made == config:
        made["vocab_size"] = vocabulary
    return made


def given_rows(header: Header, read: ReadFile, path: str, base: BaseFingerprint, vocabulary: int) -> Iterator[NewRows]:
    """The rows of new tokens in a safetensors file: of the embedding and of the output layer, by the names of the base
    or as PEFT stores them. A tensor holds all `vocabulary` rows, of which the last are taken, or the new ones alone.

    Raises RegistryError `rejected` if the file has none of them, or one of another shape.
    """
    found: dict[str, tuple[int, TensorEntry, BaseTensor]] = {}
    modules = modules_of(base)
    wanted = {tensor.name: tensor for tensor in vocabulary_tensors(base)}
    for entry in header.tensors:
        name, wrapper = unwrapped(entry.name.removeprefix(PREFIX))
        tensor = modules.resolve_parameter(name)
        if tensor is None or tensor.name not in wanted or wrapper not in _PREFERRED:
            continue
        rank = _PREFERRED.index(wrapper)
        if tensor.name not in found or rank < found[tensor.name][0]:
            found[tensor.name] = rank, entry, tensor
    if not found:
        raise RegistryError(
            "rejected",
            f"{path} has no rows for {', '.join(wanted)}.",
            hint="Give a safetensors file with tensors of these names; without one, new rows are the mean of the old.",
        )
    for name, (_, entry, tensor) in sorted(found.items()):
        added = vocabulary - tensor.shape[0]
        if entry.shape[1:] != tensor.shape[1:] or entry.shape[0] not in (vocabulary, added):
            raise RegistryError(
                "rejected",
                f"{entry.name} in {path} has the shape {list(entry.shape)}; expected {vocabulary} rows, or the {added} "
                f"new ones, of {list(tensor.shape[1:])}.",
            )
        size = entry.nbytes // entry.shape[0] * added
        yield NewRows(name, entry.dtype, base64.b64encode(read(path, entry.file_end - size, size)).decode())


def check_rows(rows: tuple[NewRows, ...], base: BaseFingerprint, vocabulary: int) -> dict[str, NewRows]:
    """Rows by the tensor they are for. Raises RegistryError `invalid-request` if they do not fit."""
    tensors = {tensor.name: tensor for tensor in vocabulary_tensors(base)}
    for given in rows:
        tensor = tensors.get(given.tensor)
        if tensor is None or given.dtype not in FLOAT_DTYPES:
            raise RegistryError("invalid-request", f"{given.tensor} is not an embedding or output layer of the base.")
        elements = vocabulary - tensor.shape[0]
        for size in tensor.shape[1:]:
            elements *= size
        if len(given.bytes()) != elements * DTYPE_BYTES[given.dtype] or elements <= 0:
            raise RegistryError(
                "invalid-request", f"The rows of {given.tensor} have another size than {elements} values."
            )
    return {given.tensor: given for given in rows}


def _replaced(config: Mapping[str, Any], rows: int, vocabulary: int) -> dict[str, Any]:
    return {
        key: _replaced(value, rows, vocabulary)
        if isinstance(value, dict)
        else vocabulary
        if key in _KEYS and value == rows
        else value
        for key, value in config.items()
    }
