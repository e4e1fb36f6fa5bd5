"""The body of a commit, however it is cut."""

from __future__ import annotations

import base64
import json
import random
import tracemalloc

import pytest

from lora_contract.errors import RegistryError
from lora_registry.hub.ndjson import MAX_LINE, Lines


class Collected:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.lines: list[tuple[str, object]] = []
        self.size = 0
        self._now = b""

    def write(self, data: bytes) -> None:
        self._now += data

    def end(self, path: str) -> None:
        self.files[path], self._now = self._now, b""

    def line(self, key: str, value: object) -> None:
        self.lines.append((key, value))


def file(path: str, data: bytes) -> dict[str, object]:
    content = base64.b64encode(data).decode()
    return {"key": "file", "value": {"content": content, "path": path, "encoding": "base64"}}


def parse(*pieces: bytes) -> Collected:
    found = Collected()
    lines = Lines(found, found.line)
    for piece in pieces:
        lines.feed(piece)
    lines.end()
    return found


def test_it_reads_what_python_and_javascript_write_wherever_it_is_cut() -> None:
    data = random.Random(1).randbytes(5000)
    header = {"key": "header", "value": {"summary": 'a "content": "x" in it', "description": ""}}
    first = file("a", data)
    odd = {"value": {"path": 'q"content":"', "encoding": "base64", "content": "aGk="}, "key": "file"}
    body = "\n".join(
        [
            json.dumps(header),
            json.dumps(first),
            "",
            json.dumps(file("empty", b""), separators=(",", ":")),
            json.dumps(odd),
            json.dumps({"key": "deletedFile", "value": {"path": "old"}}),
        ]
    ).encode()
    whole = parse(body)
    assert whole.files == {"a": data, "empty": b"", 'q"content":"': b"hi"}
    assert whole.lines == [("header", header["value"]), ("deletedFile", {"path": "old"})]
    for step in (1, 3, 64, 1000):
        cut = parse(*(body[start : start + step] for start in range(0, len(body), step)))
        assert (cut.files, cut.lines) == (whole.files, whole.lines)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"nonsense\n", "invalid-request"),
        (b"[1]\n", "invalid-request"),
        (b'{"key": "header", "value": {"summary": "\\ud800"}}', "invalid-request"),
        (b'{"key": "header", "value": {"summary": "\xff"}}', "invalid-request"),
        (b'{"key": "header"}\n', "invalid-request"),
        (b'{"key": "file", "value": {"content": "a*b=", "path": "x", "encoding": "base64"}}', "invalid-request"),
        (b'{"key": "file", "value": {"content": "aGk", "path": "x", "encoding": "base64"}}', "invalid-request"),
        (b'{"key": "file", "value": {"content": "aGk=', "invalid-request"),
        (b'{"key": "file", "value": {"content": "aGk=", "path": 7, "encoding": "base64"}}', "invalid-request"),
        (b'{"key": "file", "value": {"content": "aGk=", "path": "x"}}', "invalid-request"),
        (b'{"key": "file", "value": {"content": "", "content": "aGk=", "path": "x", "encoding": "base64"}}', "invalid-request"),
        (b'{"key": "header", "value": {"content": "aGk="}}', "invalid-request"),
        (b'{"a":' * 5000 + b"1\n", "invalid-request"),
        (b'{"key": "' + b"x" * MAX_LINE + b'"}', "too-large"),
        (b'{"key":"header","value":{}}\n' * 10_001, "too-large"),
    ],
)  # fmt: skip
def test_what_is_no_commit_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(RegistryError) as refused:
        parse(body)
    assert refused.value.code == code


def mutated(body: bytes, random: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(changed))
        match random.randrange(4):
            case 0:
                changed[at] = random.choice(b'"{}[]\\:,\n\x00a=\xff')
            case 1:
                del changed[at : at + random.randint(1, 20)]
            case 2:
                changed[at:at] = random.choice((b'"content": "', b"\\u0000", b"\n", b'"', b"{", b"A" * 70_000))
            case _:
                changed[at:at] = changed[: random.randint(1, 60)]
        changed = changed or bytearray(b"x")
    return bytes(changed)


def test_mutated_commits_are_read_the_same_however_they_are_cut() -> None:
    fuzz(300)


def fuzz(count: int) -> None:
    """By hand: `python -c "from tests.registry.hub.test_ndjson import fuzz; fuzz(100_000)"`."""
    chance = random.Random(5)
    lines: list[dict[str, object]] = [
        {"key": "header", "value": {"summary": "x"}},
        file("a", bytes(40)),
        file("b", b""),
    ]
    body = "\n".join(map(json.dumps, lines)).encode()
    for _ in range(count):
        data, step = mutated(body, chance), chance.randint(1, 200)
        outcomes = []
        for pieces in ([data], [data[start : start + step] for start in range(0, len(data), step)]):
            try:
                found = parse(*pieces)
                outcomes.append((found.files, found.lines))
            except RegistryError as error:
                outcomes.append(error.code)
        assert outcomes[0] == outcomes[1], data


def test_memory_does_not_grow_with_a_file() -> None:
    class Counting(Collected):
        def write(self, data: bytes) -> None:
            self.size += len(data)

    found = Counting()
    lines = Lines(found, found.line)
    piece = base64.b64encode(bytes(48 * 1024))
    tracemalloc.start()
    lines.feed(b'{"key": "file", "value": {"content": "')
    for _ in range(200):
        lines.feed(piece)
    lines.feed(b'", "path": "x", "encoding": "base64"}}\n')
    lines.end()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.size, list(found.files)) == (200 * 48 * 1024, ["x"])
    assert peak < 1024 * 1024
