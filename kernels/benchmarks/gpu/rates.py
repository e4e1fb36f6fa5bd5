"""How many instructions of some kinds the device executes: the model behind the predictions takes rates that were
never measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, Final

import torch
import triton
import triton.language as tl

from benchmarks.gpu.place import Place
from lora_kernels.ops.rounding import COMPILED

# By number: a kernel cannot take a text that differs from call to call.
NAMES: Final = ("fma", "logic", "floats to bf16x2", "minimum of int16x2, logic", "shuffle", "product of 64 bits, logic")
_ASSEMBLY: Final = (
    "{ .reg .f32 a, b; mov.b32 a, $1; mov.b32 b, $2; fma.rn.f32 a, a, b, b; mov.b32 $0, a; }",
    "lop3.b32 $0, $1, $2, 0x9E3779B9, 0xE8;",
    "{ .reg .f32 a, b; mov.b32 a, $1; mov.b32 b, $2; cvt.rn.bf16x2.f32 $0, a, b; }",
    "{ .reg .b32 t; min.s16x2 t, $1, $2; xor.b32 $0, t, $2; }",
    "shfl.sync.idx.b32 $0, $1, $2, 31, -1;",
    "{ .reg .b64 all; .reg .b32 high; mul.wide.u32 all, $1, $2; mov.b64 {$0, high}, all; xor.b32 $0, $0, high; }",
)
FMA, LOGIC, ROUND, MINIMUM, SHUFFLE, PRODUCT = (tl.constexpr(text) for text in _ASSEMBLY)
_WARPS: Final = 4
_PER_THREAD: Final = 4
_UNROLLED: Final = tl.constexpr(16)
_STEPS: Final = 1024
# Enough to fill a device of any size a few times.
_PROGRAMS: Final = 4096


@triton.jit
def one_step(b_x: tl.tensor, b_y: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    if not COMPILED:
        return b_x ^ b_y
    elif KIND == 0:
        return tl.inline_asm_elementwise(FMA, "=r,r,r", [b_x, b_y], dtype=tl.int32, is_pure=False, pack=1)
    elif KIND == 1:
        return tl.inline_asm_elementwise(LOGIC, "=r,r,r", [b_x, b_y], dtype=tl.int32, is_pure=False, pack=1)
    elif KIND == 2:
        return tl.inline_asm_elementwise(ROUND, "=r,r,r", [b_x, b_y], dtype=tl.int32, is_pure=False, pack=1)
    elif KIND == 3:
        return tl.inline_asm_elementwise(MINIMUM, "=r,r,r", [b_x, b_y], dtype=tl.int32, is_pure=False, pack=1)
    elif KIND == 4:
        return tl.inline_asm_elementwise(SHUFFLE, "=r,r,r", [b_x, b_y], dtype=tl.int32, is_pure=False, pack=1)
    else:
        return tl.inline_asm_elementwise(PRODUCT, "=r,r,r", [b_x, b_y], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def rate_kernel(numbers: tl.tensor, out: tl.tensor, steps: tl.tensor, KIND: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """Chains of one kind of instruction, `_PER_THREAD` in each thread. numbers: int32 (2 * BLOCK,)."""
    o_all = tl.arange(0, BLOCK)
    b_x, b_y = tl.load(numbers + o_all), tl.load(numbers + BLOCK + o_all)
    for _ in range(steps):
        for _ in tl.static_range(_UNROLLED):
            b_x = one_step(b_x, b_y, KIND)
    tl.store(out + o_all, b_x)


def rates(place: Place) -> Iterator[dict[str, Any]]:
    """Steps of all lanes per second; None without a clock. A step is one instruction, or two where the name has two."""
    block = 32 * _WARPS * _PER_THREAD
    numbers = torch.randint(1, 1 << 30, (2 * block,), dtype=torch.int32, device=place.device)
    out = torch.empty(block, dtype=torch.int32, device=place.device)
    programs, steps = (1, 1) if place.dry else (_PROGRAMS, _STEPS)
    for kind, name in enumerate(NAMES):

        def run(kind: int = kind) -> None:
            rate_kernel[(programs,)](numbers, out, steps, KIND=kind, BLOCK=block, num_warps=_WARPS)

        warm = place.warm(run)
        known = [taken for taken in (place.time(run, warm) for _ in range(min(place.rounds, 5))) if taken is not None]
        executed = programs * steps * int(_UNROLLED) * block
        yield {
            "instruction": name,
            "steps": executed,
            "per_second": executed / statistics.median(known) if known else None,
            "multiprocessors": None
            if place.dry
            else torch.cuda.get_device_properties(place.device).multi_processor_count,
        }
