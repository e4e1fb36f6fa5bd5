"""The inline assembly of kernels, run in numpy: what a warp's thread computes, instruction by instruction.

A register is an array of uint32, one number for each of many threads. Tables that lie in the lanes are arrays of 32,
which shuffles index.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]
_ALL_LANES: Final = "-1"


def run(assembly: str, inputs: Sequence[U32], *, outputs: int) -> list[U32]:
    """The outputs $0, $1, ... for the inputs that follow them. Raises KeyError for an instruction that is not here."""
    registers = {f"${outputs + index}": value for index, value in enumerate(inputs)}
    for statement in re.sub(r"//.*", "", assembly).strip(" {}").split(";"):
        words = statement.split(None, 1)
        if not words or words[0] == ".reg":
            continue
        if words[0] == "mov.b64":  # {low, high}, of a register of 64 bits
            low, high, both = re.findall(r"[$\w]+", words[1])
            registers[low], registers[high] = np.asarray(registers[both]).view(np.uint32).reshape(-1, 2).T
            continue
        target, *operands = (operand.strip() for operand in words[1].split(","))
        registers[target] = _OPERATIONS[words[0]](*(_value(one, registers) for one in operands if one != _ALL_LANES))
    return [registers[f"${index}"] for index in range(outputs)]


def _value(operand: str, registers: dict[str, U32]) -> Any:
    if operand in registers:
        return registers[operand]
    return np.uint32(int(operand[2:], 16) if operand.startswith("0f") else int(operand, 0))


def _float(bits: Any) -> Any:
    return np.asarray(bits, np.uint32).view(np.float32)


def _bits(numbers: Any) -> Any:
    return np.asarray(numbers, np.float32).view(np.uint32)


def _fma(one: Any, other: Any, more: Any) -> Any:
    """Exact but for one rounding, if the sum needs at most 53 bits."""
    product = _float(one).astype(np.float64) * _float(other).astype(np.float64)
    return _bits((product + _float(more).astype(np.float64)).astype(np.float32))


def _permute(low: Any, high: Any, selector: Any) -> Any:
    found = np.zeros_like(low)
    for index in range(4):
        place = int(selector >> np.uint32(4 * index)) & 15
        assert place < 8, "copies of a sign are not here"
        found |= (((high if place > 3 else low) >> np.uint32(8 * (place % 4))) & np.uint32(255)) << np.uint32(8 * index)
    return found


_OPERATIONS: Final[dict[str, Callable[..., Any]]] = {
    "mov.b32": lambda a: a,
    "add.u32": lambda a, b: a + b,
    "xor.b32": lambda a, b: a ^ b,
    "or.b32": lambda a, b: a | b,
    "shl.b32": lambda a, b: a << b,
    "shr.u32": lambda a, b: a >> b,
    "shr.s32": lambda a, b: (a.view(np.int32) >> np.int32(b)).view(np.uint32),
    # (high : low) << count, of which the high half.
    "shf.l.wrap.b32": lambda low, high, count: (high << count) | (low >> (np.uint32(32) - count)),
    "shfl.sync.idx.b32": lambda table, lane, clamp: table[lane & clamp],
    "prmt.b32": _permute,
    "fma.rn.f32": _fma,
    "mul.wide.u32": lambda a, b: a.astype(np.uint64) * b.astype(np.uint64),
    "set.gt.f32.f32": lambda a, b: _bits(_float(a) > _float(b)),
    "sub.rn.f32": lambda a, b: _bits(_float(a) - _float(b)),
}
