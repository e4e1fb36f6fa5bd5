"""Machine code of compiled kernels: what a thread executes per element, read from the disassembly.

The instructions outside the main loop are counted once and those of its body once for each step; of a branch both sides
count. Subroutines, such as the slow path of a 64-bit division, do not count. The main loop is the longest of the
outermost loops of a kernel that makes several steps.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from triton import knobs

_LINE: Final = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);", re.MULTILINE)
_RESOURCES: Final = re.compile(r"REG:(\d+) STACK:(\d+)")
_GLOBAL: Final = {"LDG": "ld", "STG": "st"}
# Bytes per thread of an access, by the suffix of its instruction; 4 without one.
_WIDTHS: Final = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_SYMBOL: Final = "<IBBHQQ"
_SECTION: Final = "<IIQQQQIIQQ"


@dataclass(frozen=True, slots=True)
class Instruction:
    """name: with its suffixes, as `LDG.E.128`. target: the address that a branch jumps to."""

    address: int
    name: str
    target: int | None

    @property
    def stem(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Executed:
    """Instructions of a thread. once: outside the main loop. step: in one pass of it; empty without a main loop."""

    once: tuple[Instruction, ...]
    step: tuple[Instruction, ...]

    @property
    def inner(self) -> tuple[Instruction, ...]:
        """The main loop, or all if there is none."""
        return self.step or self.once


def disassemble(cubins: Sequence[bytes]) -> list[list[Instruction]]:
    """The instructions of each kernel, without its subroutines. All in one call: the disassembler takes 0.3 s to
    start."""
    codes = [_machine_code(cubin) for cubin in cubins]
    listing = _run(knobs.nvidia.nvdisasm.path, "--binary=SM90a", "--no-dataflow", content=b"".join(codes))
    found = [
        Instruction(int(address, 16), name, _target(name, operands))
        for address, name, operands in _LINE.findall(listing)
    ]
    kernels, start = [], 0
    for code, cubin in zip(codes, cubins, strict=True):
        end = start + min([len(code), *_subroutines(cubin)])
        kernels.append(_trimmed([one for one in found if start <= one.address < end]))
        start += len(code)
    return kernels


def registers(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes of its stack."""
    used = _RESOURCES.search(_run(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", content=cubin))
    assert used, "cuobjdump printed no resources"
    return int(used[1]), int(used[2])


def executed(kernel: Sequence[Instruction], *, steps: int) -> Executed:
    """Split a kernel at its main loop. steps: passes of the main loop; 1 if there is none."""
    if steps == 1:
        return Executed(tuple(kernel), ())
    loops = _outermost(kernel)
    assert loops, "the kernel has no loop"
    start, end = max(loops, key=lambda loop: loop[1] - loop[0])
    inside = tuple(one for one in kernel if start <= one.address <= end)
    return Executed(tuple(one for one in kernel if not start <= one.address <= end), inside)


def accesses(instructions: Iterable[Instruction]) -> Counter[tuple[str, int]]:
    """Loads ("ld") and stores ("st") of global memory, by bytes per thread."""
    return Counter(
        (_GLOBAL[one.stem], next((_WIDTHS[part] for part in one.name.split(".") if part in _WIDTHS), 4))
        for one in instructions
        if one.stem in _GLOBAL
    )


def count(instructions: Iterable[Instruction], *stems: str) -> int:
    return sum(one.stem in stems for one in instructions)


def _outermost(kernel: Sequence[Instruction]) -> list[tuple[int, int]]:
    """The first and last addresses of loops that are in no other loop. A loop ends with a branch backwards."""
    ends: dict[int, int] = {}
    for one in kernel:
        if one.target is not None and one.target < one.address:
            ends[one.target] = max(ends.get(one.target, 0), one.address)
    loops: list[tuple[int, int]] = []
    for start, end in sorted(ends.items()):
        if not loops or start > loops[-1][1]:
            loops.append((start, end))
        else:
            loops[-1] = (loops[-1][0], max(loops[-1][1], end))
    return loops


def _target(name: str, operands: str) -> int | None:
    """The last operand: the condition of a branch may come first."""
    return int(operands.rsplit(maxsplit=1)[-1], 16) if name.startswith("BRA") else None


def _trimmed(kernel: list[Instruction]) -> list[Instruction]:
    """Without the padding after the last instruction: a branch to itself, then NOPs."""
    while kernel and (kernel[-1].stem == "NOP" or kernel[-1].target == kernel[-1].address):
        kernel.pop()
    return kernel


def _machine_code(cubin: bytes) -> bytes:
    sections = _sections(cubin)
    (code,) = (content for name, _, content in sections if name.startswith(".text."))
    return code


def _subroutines(cubin: bytes) -> list[int]:
    """Offsets of the subroutines in the machine code. They come after the kernel."""
    sections = _sections(cubin)
    (table,) = (content for _, kind, content in sections if kind == 2)
    return [
        value for _, info, _, _, value, size in struct.iter_unpack(_SYMBOL, table) if info & 15 == 2 and size and value
    ]


def _sections(cubin: bytes) -> list[tuple[str, int, bytes]]:
    """Name, kind and content of the sections of an ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, number, names = struct.unpack_from("<HHH", cubin, 0x3A)
    found = [struct.unpack_from(_SECTION, cubin, table + index * size) for index in range(number)]
    strings = found[names][4]
    # A section of kind 8 has no bytes in the file.
    return [
        (
            cubin[strings + name : cubin.index(b"\0", strings + name)].decode(),
            kind,
            cubin[offset : offset + (length if kind != 8 else 0)],
        )
        for name, kind, _, _, offset, length, *_ in found
    ]


def _run(tool: str, *options: str, content: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(content)
        done = subprocess.run([tool, *options, path], check=True, capture_output=True, text=True)
    return done.stdout
