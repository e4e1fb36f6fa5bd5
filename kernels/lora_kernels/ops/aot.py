"""Compile a kernel ahead of time, without a GPU, and report its costs: registers, spills, shared memory.

The numbers are those of `ptxas -v` for the PTX that Triton generates for the target, with Triton's own ptxas.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lora_contract.errors import RegistryError
from lora_kernels.ops.configs import LaunchConfig
from lora_kernels.ops.dispatch import interpreted
from lora_kernels.ops.launch import options

H200: Final = GPUTarget("cuda", 90, 32)
_ARCHITECTURE: Final = "sm_90a"
_ACCESS: Final = re.compile(r"\b(ld|st)\.global\S*?(?:\.v(\d))?\.[bsuf](\d+)\b")
_USED: Final = re.compile(r"Used (\d+) registers")
_SPILLS: Final = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compile a kernel. name: for users and tests. types: of the runtime arguments, in Triton's notation
    (`*i64`, `fp32`). constants: the compile-time arguments. offset_bits: width of the offsets in blocks; 32 if they
    count from a 64-bit address within the matrix."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any] = field(hash=False)
    config: LaunchConfig
    offset_bits: int = 64


@dataclass(frozen=True, slots=True)
class Cost:
    """Costs of a variant. registers: per thread. spill_bytes: stores plus loads, per thread. shared: bytes per program.
    accesses: instructions on global memory, by kind ("ld", "st") and bytes per thread. ir: Triton's, before layouts."""

    registers: int
    spill_bytes: int
    shared: int
    accesses: dict[tuple[str, int], int]
    ir: str = field(repr=False)


def compile_variant(variant: Variant) -> Cost:
    """Compile for the H200 (sm_90). Raises RegistryError `unsupported` in a process whose kernels are interpreted."""
    if interpreted():
        raise RegistryError(
            "unsupported",
            "Kernels cannot be compiled in a process that interprets them.",
            hint="Unset TRITON_INTERPRET and restart the process.",
        )
    names = variant.kernel.arg_names
    source = ASTSource(
        fn=variant.kernel,
        signature={name: variant.types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        attrs={
            (names.index(name),): [["tt.divisibility", 16]] for name, kind in variant.types.items() if kind[0] == "*"
        },
    )
    compiled = triton.compile(source, target=H200, options=options(variant.config))
    ptx = compiled.asm["ptx"]
    report = _ptxas(ptx)
    registers, spills = _USED.search(report), _SPILLS.search(report)
    assert registers, report
    assert spills, report
    return Cost(
        registers=int(registers[1]),
        spill_bytes=int(spills[1]) + int(spills[2]),
        shared=compiled.metadata.shared,
        accesses=Counter((kind, int(lanes or 1) * int(bits) // 8) for kind, lanes, bits in _ACCESS.findall(ptx)),
        ir=compiled.asm["ttir"],
    )


def _ptxas(ptx: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx, encoding="utf-8")
        done = subprocess.run(
            [
                knobs.nvidia.ptxas.path,
                "-v",
                "--fmad=false",
                f"--gpu-name={_ARCHITECTURE}",
                path,
                "-o",
                path.with_suffix(".cubin"),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
    return done.stderr
