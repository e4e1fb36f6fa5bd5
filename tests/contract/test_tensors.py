from __future__ import annotations

import json
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_contract.errors import RegistryError
from lora_contract.tensors import DTYPE_BYTES, MAX_HEADER_BYTES, header_length, parse_header, write_header

NAMES = st.text(st.characters(codec="ascii", categories=("L", "N"), include_characters="._-"), min_size=1, max_size=40)
TENSORS = st.lists(
    st.tuples(
        NAMES.filter(lambda name: name != "__metadata__"),
        st.sampled_from(sorted(DTYPE_BYTES)),
        st.lists(st.integers(0, 5), max_size=4).map(tuple),
    ),
    max_size=8,
    unique_by=lambda row: row[0],
)


def data_size(tensors) -> int:
    total = 0
    for _, dtype, shape in tensors:
        size = DTYPE_BYTES[dtype]
        for dimension in shape:
            size *= dimension
        total += size
    return total


@given(TENSORS, st.dictionaries(NAMES, st.text(max_size=8).filter(lambda t: t.isprintable()), max_size=3))
def test_what_is_written_is_read(tensors, metadata):
    head = write_header(tensors, metadata)
    assert len(head) % 8 == 0
    header = parse_header(head, len(head) + data_size(tensors))
    assert header.metadata == metadata
    assert header.data_start == len(head)
    assert {t.name: (t.dtype, t.shape) for t in header.tensors} == {n: (d, s) for n, d, s in tensors}
    position = 0
    for tensor in header.tensors:
        assert (tensor.start, tensor.file_start) == (position, position + len(head))
        position = tensor.end
    assert position == data_size(tensors)


@given(TENSORS)
def test_the_library_reads_what_we_write(tensors):
    safetensors = pytest.importorskip("safetensors")
    head = write_header(tensors, {"format": "pt"})
    found = safetensors.deserialize(head + bytes(data_size(tensors)))
    assert {name: tuple(info["shape"]) for name, info in found} == {name: shape for name, _, shape in tensors}


@given(st.binary(max_size=200), st.integers(0, 1 << 40))
def test_any_bytes_are_read_or_refused(data, size):
    try:
        parse_header(data, size)
    except RegistryError as error:
        assert error.code == "rejected"


@given(TENSORS.filter(bool), st.integers(0, 4000), st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(tensors, place, byte):
    head = bytearray(write_header(tensors))
    head[place % len(head)] = byte
    try:
        header = parse_header(bytes(head), len(head) + data_size(tensors))
    except RegistryError as error:
        assert error.code == "rejected"
    else:
        assert sum(tensor.nbytes for tensor in header.tensors) + header.data_start == len(head) + data_size(tensors)


def test_golden_bytes():
    head = write_header([("b.weight", "F32", (2, 3)), ("a", "BF16", ())], {"z": "1", "format": "pt"})
    text = (
        b'{"__metadata__":{"format":"pt","z":"1"},"b.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
        b'"a":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}}'
    )
    padded = text + b" " * (-len(text) % 8)
    assert head == struct.pack("<Q", len(padded)) + padded


def raw(document: object, size: int = 0) -> tuple[bytes, int]:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    head = struct.pack("<Q", len(text)) + text
    return head, len(head) + size


def tensor(start: int, end: int, shape: object = None, dtype: object = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


FAULTS = {
    "empty file": (b"", 0, "8 bytes of header length"),
    "40 bytes of nothing": (bytes(40), 40, "smallest"),
    "8 GiB": (struct.pack("<Q", 8 << 30), 100, "the maximum is"),
    "u64::MAX": (struct.pack("<Q", (1 << 64) - 1), 100, "the maximum is"),
    "beyond the file": (struct.pack("<Q", 93), 100, "only 92 bytes follow"),
    "no JSON": (*raw(b"{nonsense}"), "JSON"),
    "a list": (*raw([]), "begin with '{'"),
    "space first": (*raw(b' {"a":1}'), "begin with '{'"),
    "duplicate tensor": (
        *raw(
            b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[1,2],"data_offsets":[0,2]}}',
            2,
        ),
        "twice",
    ),
    "duplicate inner key": (*raw(b'{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}', 2), "twice"),
    "duplicate metadata": (*raw(b'{"__metadata__":{"a":"1"},"__metadata__":{"a":"1"}}'), "twice"),
    "duplicate key of metadata": (*raw(b'{"__metadata__":{"a":"1","\\u0061":"1"}}'), "'a' twice"),
    "keys without tensors": (*raw(b"{" + b",".join(b'"%07d":0' % n for n in range(700_000)) + b"}"), "700000 keys"),
    "bad UTF-8 in a value": (*raw(b'{"a":{"dtype":"U8","shape":["\xff"],"data_offsets":[0,2]}}', 2), "JSON"),
    "overlap": (*raw({"a": tensor(0, 4), "b": tensor(2, 6)}, 6), "overlaps"),
    "same bytes twice": (*raw({"a": tensor(0, 4), "b": tensor(0, 4)}, 4), "overlaps"),
    "hole": (*raw({"a": tensor(0, 4), "b": tensor(5, 6)}, 6), "gap"),
    "hole at the start": (*raw({"a": tensor(1, 4)}, 4), "gap"),
    "trailing bytes": (*raw({"a": tensor(0, 4)}, 5), "1 bytes follow"),
    "truncated": (*raw({"a": tensor(0, 4)}, 3), "1 bytes are missing"),
    "size against shape": (*raw({"a": tensor(0, 4, [3])}, 4), "need 3"),
    "unknown dtype": (*raw({"a": tensor(0, 4, dtype="F12")}, 4), "dtype"),
    "overflow": (*raw({"a": tensor(0, 4, [1 << 40, 1 << 40])}, 4), "2^48"),
    "boolean offset": (*raw({"a": {"dtype": "U8", "shape": [1], "data_offsets": [False, True]}}, 1), "data_offsets"),
    "float shape": (*raw(b'{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', 1), "shape"),
    "minus zero": (*raw(b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'), "-0"),
    "too much metadata": (*raw({"__metadata__": {str(n): "" for n in range(5000)}}), "5000 keys of metadata"),
    "objects in a list": (*raw({"a": [{}, {}, {}]}), "fields other than"),
    "a large header not of ASCII": (*raw(("{" + '"__metadata__":{"a":"' + "é" * 600_000 + '"}}').encode()), "ASCII"),
    "negative": (*raw({"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}, 1), "shape"),
    "reversed offsets": (*raw({"a": {"dtype": "U8", "shape": [0], "data_offsets": [2, 1]}}, 2), "ascending"),
    "further key": (*raw({"a": {**tensor(0, 1), "x": 1}}, 1), "other than"),
    "metadata of numbers": (*raw({"__metadata__": {"a": 1}}), "metadata"),
    "control character": (*raw({"a\nb": tensor(0, 1)}, 1), "control"),
    "bidi override": (*raw({"a\u202eb": tensor(0, 1)}, 1), "control"),
    "long name": (*raw({"a" * 600: tensor(0, 1)}, 1), "600 characters"),
    "deep nesting": (*raw(b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"), "nested"),
    "byte order mark": (*raw(b"\xef\xbb\xbf{}"), "begin with '{'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_refused_in_a_sentence(name):
    head, size, words = FAULTS[name]
    with pytest.raises(RegistryError) as caught:
        parse_header(head, size)
    assert caught.value.code == "rejected"
    assert words in caught.value.detail


def test_zero_size_tensors_are_legitimate():
    head, size = raw({"a": tensor(0, 0, [0, 256], "F32"), "b": tensor(0, 4), "c": tensor(4, 4, [4, 0])}, 4)
    assert [t.name for t in parse_header(head, size).tensors] == ["a", "b", "c"]


def test_nothing_beyond_the_cap_is_asked_for():
    assert header_length(struct.pack("<Q", MAX_HEADER_BYTES), MAX_HEADER_BYTES + 8) == MAX_HEADER_BYTES
    with pytest.raises(RegistryError):
        header_length(struct.pack("<Q", MAX_HEADER_BYTES + 1), 1 << 40)


def test_many_tensors_take_little_more_memory_than_their_text() -> None:
    """Before, six times the text. At the most tensors that a file may have, it is 21 MB."""
    head = write_header(
        [(f"base_model.model.layers.{n}.mlp.experts.0.lora_A.weight", "F32", (2, 2)) for n in range(9000)]
    )
    size = len(head) + 9000 * 16
    tracemalloc.start()
    try:
        header = parse_header(head, size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(header.tensors) == 9000
    assert peak < 4 * len(head)
