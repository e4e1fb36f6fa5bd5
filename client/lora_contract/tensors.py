"""Strict, bounded parser of safetensors headers. It reads no tensor data, and runs before any library sees the file.

A file is 8 bytes (little-endian length of the header), the header (a JSON object), then the data. Stricter than the
library (https://github.com/huggingface/safetensors): duplicate keys are refused at every level.
"""

from __future__ import annotations

import struct
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, Final

import msgspec

from lora_contract import canonical, decoding, json_text
from lora_contract.errors import RegistryError

MAX_HEADER_BYTES: Final = 100_000_000
"""The limit of the library."""
MAX_ADAPTER_HEADER_BYTES: Final = 32 * 1024 * 1024
"""A LoRA on all experts of a model of 60 layers with 384 experts has 138,240 tensors and a header of 22 MB."""
MAX_TENSORS: Final = 150_000
MAX_METADATA: Final = 4096
_MAX_VALUES: Final = 9 * MAX_TENSORS + MAX_METADATA
"""Commas and brackets of so many tensors of two dimensions."""
_LARGE: Final = 1024 * 1024
"""A larger header is ASCII: as text, it would take four times its size otherwise."""
MAX_NAME: Final = 512
MAX_DIMENSIONS: Final = 8
MAX_ELEMENTS: Final = 1 << 48

DTYPE_BYTES: Final[dict[str, int]] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
DTYPE_NAMES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""The dtypes of weights by their names in torch and in configs."""
FLOAT_DTYPES: Final = frozenset({"F64", "F32", "F16", "BF16"})
ADAPTER_DTYPES: Final = frozenset({"F32", "F16", "BF16"})
"""Dtypes allowed for an adapter's values. Trainers do not save float64, and loaders do not preserve it."""
_LENGTH: Final = struct.Struct("<Q")


class _Described(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The fields of a tensor as they were found."""

    dtype: Any
    shape: Any
    data_offsets: Any


class TensorEntry(msgspec.Struct, frozen=True, gc=False):
    """A tensor of a file. start, end: byte offsets in the data section, which begins at data_start in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    data_start: int

    @property
    def file_start(self) -> int:
        return self.data_start + self.start

    @property
    def file_end(self) -> int:
        return self.data_start + self.end

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        return self.end - self.start


class Header(msgspec.Struct, frozen=True):
    """A parsed header. tensors: in the order of their data. data_start: offset of the data section in the file."""

    tensors: tuple[TensorEntry, ...]
    metadata: dict[str, str]
    data_start: int

    def by_name(self) -> dict[str, TensorEntry]:
        return {tensor.name: tensor for tensor in self.tensors}


def header_length(first8: bytes, file_size: int, max_bytes: int = MAX_HEADER_BYTES) -> int:
    """The length of the header, from the first eight bytes of a file. Raises RegistryError `rejected`."""
    if file_size < 8 or len(first8) < 8:
        raise _bad(f"has {file_size} bytes; a safetensors file begins with 8 bytes of header length")
    length: int = _LENGTH.unpack(first8[:8])[0]
    if length > max_bytes:
        raise _bad(f"declares a header of {length} bytes; the maximum is {max_bytes}")
    if length > file_size - 8:
        raise _bad(f"declares a header of {length} bytes, but only {file_size - 8} bytes follow")
    if length < 2:
        raise _bad(f"declares a header of {length} bytes; the smallest header is {{}}")
    return length


def parse_header(prefix: bytes, file_size: int) -> Header:
    """Parse the header from the first bytes of a file (8 + header length, or more) of `file_size` bytes.

    Raises RegistryError `rejected` for a wrong length, JSON that is not strict, duplicate keys, unknown dtypes, sizes
    that disagree with shape and dtype, overlaps, gaps, and bytes after the last tensor.
    """
    length = header_length(prefix[:8], file_size)
    if len(prefix) < 8 + length:
        raise _bad(f"has a header of {length} bytes, of which only {len(prefix) - 8} were read")
    return _parse(prefix[8 : 8 + length], file_size)


def _parse(raw: bytes, file_size: int) -> Header:
    if raw[:1] != b"{":
        raise _bad("has a header that does not begin with '{'")
    document, outline = _document(raw)
    metadata = _metadata(document.pop("__metadata__", None))
    count = len(document)
    if count > MAX_TENSORS:
        raise _bad(f"has {count} tensors; the maximum is {MAX_TENSORS}")
    data_start = 8 + len(raw)
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    tensors = [_tensor(*document.popitem(), data_start, shapes) for _ in range(count)]
    if outline.keys != 4 * count + (0 if metadata is None else 1 + len(metadata)):
        raise _bad(f"has a header that {json_text.fault(raw)}")  # a decoder takes the last of equal keys
    if outline.negative:
        raise _bad("has the number -0 in its header, which the library refuses")
    tensors.sort(key=attrgetter("end"))
    tensors.sort(key=attrgetter("start"))  # stable, and without a pair for each
    position = 0
    for tensor in tensors:
        if tensor.start != position:
            what = "overlaps the previous tensor" if tensor.start < position else "leaves a gap before it"
            raise _bad(f"has the tensor {tensor.name!r} at byte {tensor.start}, expected {position}: it {what}")
        position = tensor.end
    if data_start + position != file_size:
        rest = file_size - data_start - position
        why = f"{rest} bytes follow the last tensor" if rest > 0 else f"{-rest} bytes are missing at the end"
        raise _bad(f"has {file_size} bytes, expected {data_start + position}: {why}")
    return Header(tensors=tuple(tensors), metadata=metadata or {}, data_start=data_start)


def read_header(
    read: Callable[[str, int, int], bytes], file: str, size: int, max_bytes: int = MAX_HEADER_BYTES
) -> Header:
    """Read the header of a file of `size` bytes, without its data.

    read: returns bytes of a file by (file, offset, length). Raises RegistryError `rejected`, as `parse_header` does.
    """
    length = header_length(read(file, 0, min(8, size)), size, max_bytes)
    return _parse(read(file, 8, length), size)


def write_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Encode the length and the header of tensors (name, dtype, shape) whose data follow in this order without gaps.

    Canonical: metadata first with sorted keys, tensors as given, no white space, padded with spaces to a multiple of
    eight, as the library does. Raises RegistryError `invalid-request` for duplicate names and unknown dtypes.
    """
    document: dict[str, Any] = {}
    if metadata:
        document["__metadata__"] = {key: metadata[key] for key in sorted(metadata)}
    position = 0
    for name, dtype, shape in tensors:
        if name in document or dtype not in DTYPE_BYTES:
            raise RegistryError(
                "invalid-request", f"The tensor {name!r} is a duplicate or has the unknown dtype {dtype!r}."
            )
        size = DTYPE_BYTES[dtype]
        for dimension in shape:
            size *= dimension
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    raw = msgspec.json.encode(document)
    raw += b" " * (-len(raw) % 8)
    return _LENGTH.pack(len(raw)) + raw


def _document(raw: bytes) -> tuple[dict[str, msgspec.Raw], json_text.Outline]:
    """Split a header into the texts of its values, each of which is decoded alone: 150,000 tensors as objects of a
    general parser take 90 MB. Return with it what is in the header."""
    what = "The safetensors header"
    outline = canonical.measured(raw, what=what, max_bytes=MAX_HEADER_BYTES, max_depth=4, max_values=_MAX_VALUES)[1]
    if len(raw) > _LARGE and not raw.isascii():
        raise _bad(f"has a header of {len(raw)} bytes with characters other than ASCII")
    if outline.keys > 4 * MAX_TENSORS + MAX_METADATA + 1:
        raise _bad(f"has {outline.keys} keys in its header; {MAX_TENSORS} tensors have {4 * MAX_TENSORS}")
    try:
        if not raw.isascii():
            raw.decode("utf-8")  # the decoder does not look into values that it only splits off
        if json_text.has_surrogate(raw):
            raise ValueError("lone surrogate")
        return decoding.decode(raw, dict[str, msgspec.Raw]), outline
    except (ValueError, RecursionError) as error:
        raise _bad(f"has a header that is not valid JSON: {error}") from error


def _tensor(
    name: str, value: msgspec.Raw, data_start: int, shapes: dict[tuple[int, ...], tuple[int, ...]]
) -> TensorEntry:
    """Decode one tensor. shapes: those seen before, of which most are."""
    if not name or len(name) > MAX_NAME:
        raise _bad(f"has a tensor name of {len(name)} characters; expected 1 to {MAX_NAME}")
    if not name.isascii() and any(unicodedata.category(character)[0] in "CZ" for character in name):
        raise _bad(f"has the tensor name {name[:80]!r} with a control, format or separator character")
    if any(character < "!" or character == "\x7f" for character in name):
        raise _bad(f"has the tensor name {name[:80]!r} with a control character or a space")
    try:
        described = decoding.decode(value, _Described)
    except msgspec.MsgspecError as error:
        raise _bad(f"describes the tensor {name!r} by fields other than dtype, shape and data_offsets") from error
    dtype, shape, offsets = described.dtype, described.shape, described.data_offsets
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _bad(f"gives the tensor {name!r} the dtype {str(dtype)[:20]!r}; expected one of {', '.join(DTYPE_BYTES)}")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise _bad(
            f"gives the tensor {name!r} a shape that is not a list of at most {MAX_DIMENSIONS} non-negative integers"
        )
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad(f"gives the tensor {name!r} data_offsets that are not an ascending pair of non-negative integers")
    elements = 1
    for size in shape:
        elements *= size
        if elements > MAX_ELEMENTS:
            raise _bad(f"gives the tensor {name!r} a shape of more than 2^48 elements")
    if elements * DTYPE_BYTES[dtype] != offsets[1] - offsets[0]:
        raise _bad(
            f"gives the tensor {name!r} {offsets[1] - offsets[0]} bytes; its shape {shape} and dtype {dtype} need "
            f"{elements * DTYPE_BYTES[dtype]}"
        )
    start, end = offsets
    return TensorEntry(name, sys.intern(dtype), shapes.setdefault(tuple(shape), tuple(shape)), start, end, data_start)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= 1 << 62 for item in value)


def _metadata(value: msgspec.Raw | None) -> dict[str, str] | None:
    if value is None:
        return None
    try:
        found = decoding.decode(value, dict[str, str])
    except msgspec.MsgspecError as error:
        raise _bad("has metadata that is not an object of strings") from error
    if len(found) > MAX_METADATA:
        raise _bad(f"has {len(found)} keys of metadata; the maximum is {MAX_METADATA}")
    return found


def _bad(why: str) -> RegistryError:
    return RegistryError("rejected", f"The safetensors file {why}.", hint="Save the file again and push it.")
