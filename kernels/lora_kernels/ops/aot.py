"""Compile kernels ahead of time for an H200, without a GPU, and read their costs from the machine code.

`kernels/benchmarks/results/sass.json` has the costs of every variant for the oldest and the newest supported version of
Triton; a test compares them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lora_contract.errors import RegistryError
from lora_kernels.ops import sass
from lora_kernels.ops.configs import LaunchConfig
from lora_kernels.ops.dispatch import interpreted
from lora_kernels.ops.launch import options

H200: Final = GPUTarget("cuda", 90, 32)
_OFFSETS: Final = re.compile(
    r"tt\.addptr %[\w#]+, %([\w#]+) : tensor<((?:\d+x)+)!tt\.ptr<\w+>>, tensor<(?:\d+x)+(\w+)>"
)
_BOUNDED: Final = re.compile(r"%([\w#]+) = (?:arith\.constant|tt\.make_range)")
_SHARED: Final = ("LDS", "LDSM", "STS", "STSM", "ATOMS")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compile a kernel.

    Args:
        name: for users and tests.
        types: of the runtime arguments, in Triton's notation (`*i64`, `fp32`).
        constants: the compile-time arguments.
        steps: passes of the main loop in a program with its full share of work; 1 if there is no such loop.
        elements: that a program processes in one pass, or in all if there is no loop; None for the tile of `config`.
        offset_bits: width of the offsets in blocks; 32 if they count from a 64-bit address within the matrix, None if
            the kernel reads and writes no matrix.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any] = field(hash=False)
    config: LaunchConfig
    steps: int = 1
    elements: int | None = None
    offset_bits: int | None = 64

    @property
    def elements_per_thread(self) -> float:
        """In one pass of the main loop."""
        elements = self.config.rows * self.config.columns if self.elements is None else self.elements
        return elements / (32 * self.config.warps)


@dataclass(frozen=True, slots=True)
class Cost:
    """Costs of a variant.

    Args:
        instructions: per element, over a program's whole work: see `sass`.
        registers: per thread.
        spills: instructions on local memory.
        shared: bytes of shared memory per program.
        exchanges: instructions on shared memory, barriers and shuffles in the main loop, or in all if there is none.
            Conversions of layouts are such instructions.
        accesses: instructions on global memory, by kind ("ld", "st") and bytes per thread.
        offsets: types of the offsets of blocks of elements, other than those known to the compiler.
    """

    instructions: float
    registers: int
    spills: int
    shared: int
    exchanges: int
    accesses: dict[tuple[str, int], int]
    offsets: tuple[str, ...]

    @property
    def widest(self) -> int:
        """Bytes per thread of the widest access."""
        return max(size for _, size in self.accesses)


def compile_variants(variants: Sequence[Variant]) -> dict[str, Cost]:
    """Compile for the H200 (sm_90), and return the costs by name. Raises RegistryError `unsupported` in a process whose
    kernels are interpreted."""
    if interpreted():
        raise RegistryError(
            "unsupported",
            "Kernels cannot be compiled in a process that interprets them.",
            hint="Unset TRITON_INTERPRET and restart the process.",
        )
    compiled = [_compiled(variant) for variant in variants]
    kernels = sass.disassemble([one.asm["cubin"] for one in compiled])
    return {
        variant.name: _cost(variant, one, kernel)
        for variant, one, kernel in zip(variants, compiled, kernels, strict=True)
    }


def _compiled(variant: Variant) -> Any:
    names = variant.kernel.arg_names
    source = ASTSource(
        fn=variant.kernel,
        signature={name: variant.types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        attrs={
            (names.index(name),): [["tt.divisibility", 16]] for name, kind in variant.types.items() if kind[0] == "*"
        },
    )
    return triton.compile(source, target=H200, options=options(variant.config))


def _cost(variant: Variant, compiled: Any, kernel: Sequence[sass.Instruction]) -> Cost:
    run = sass.executed(kernel, steps=variant.steps)
    used, _ = sass.registers(compiled.asm["cubin"])
    instructions = len(run.once) / variant.steps + len(run.step)
    return Cost(
        instructions=round(instructions / variant.elements_per_thread, 2),
        registers=used,
        spills=sass.count(kernel, "LDL", "STL"),
        shared=compiled.metadata.shared,
        exchanges=sass.count(run.inner, *_SHARED, "BAR", "SHFL", "REDUX"),
        accesses=dict(sass.accesses(kernel)),
        offsets=_offsets(compiled.asm["ttir"]),
    )


def _offsets(ir: str) -> tuple[str, ...]:
    """Types of the offsets of matrices, or of vectors if there are none."""
    bounded = set(_BOUNDED.findall(ir))
    found = [(shape.count("x"), kind) for name, shape, kind in _OFFSETS.findall(ir) if name not in bounded]
    most = max((dimensions for dimensions, _ in found), default=0)
    return tuple(sorted({kind for dimensions, kind in found if dimensions == min(most, 2) or dimensions == most}))
