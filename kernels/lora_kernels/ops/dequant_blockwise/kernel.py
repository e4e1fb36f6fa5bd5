"""Dequantization in Triton.

4-bit codes whose output is contiguous are read as a flat row of words, each of eight codes; aligned int8 goes to the
kernel on bands (`quantized.bands`), all other layouts to that of `merge_quantized`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot
from lora_kernels.ops.configs import DEQUANTIZE, LaunchConfig
from lora_kernels.ops.launch import ELEMENTS, on, options
from lora_kernels.ops.merge_quantized.kernel import merge_any
from lora_kernels.ops.quantized import FourBit, Int8Rows, Quantized, bands_launch
from lora_kernels.ops.quantized.bands_launch import Form, as_stored
from lora_kernels.ops.quantized.kernel import INT8, load_absmax, parts, types
from lora_kernels.ops.quantized.lanes import decode8, lane_table
from lora_kernels.ops.rounding import rounded
from lora_kernels.ops.tables import ALIGNED_BYTES

_WORD = tl.constexpr(8)


@triton.jit
def dequant_blockwise_kernel(
    packed: tl.tensor,
    absmax: tl.tensor,
    values: tl.tensor,
    nested_absmax: tl.tensor,
    nested_values: tl.tensor,
    offset: tl.tensor,
    out: tl.tensor,
    words: tl.tensor,
    OUTPUT: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    NESTED: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
) -> None:
    """Decode BLOCK_WORDS words. packed: uint32, `words` of them, a multiple of BLOCK_WORDS if WHOLE. absmax ... offset:
    see `load_weight`. out: flat; bf16 as uint16."""
    table = lane_table(values, 16)
    first = tl.program_id(0).to(tl.int64) * BLOCK_WORDS
    left = BLOCK_WORDS if WHOLE else tl.minimum(words - first, BLOCK_WORDS).to(tl.int32)
    # One word a thread, whose eight elements are the 16 bytes that it writes.
    o_words = tl.max_contiguous(tl.arange(0, BLOCK_WORDS), 1)
    b_words = tl.load(packed + first + o_words, o_words < left)
    blocks: tl.constexpr = BLOCK_WORDS * _WORD // BLOCKSIZE
    o_blocks = tl.arange(0, blocks)
    b_scale = load_absmax(
        (first // (BLOCKSIZE // _WORD) + o_blocks).to(tl.uint64), o_blocks * (BLOCKSIZE // _WORD) < left,
        absmax, nested_absmax, nested_values, offset, NESTED,
    )  # fmt: skip
    b_values = tl.reshape(decode8(b_words, table), (blocks, BLOCKSIZE // _WORD, _WORD)) * b_scale[:, None, None]
    o_out = tl.arange(0, BLOCK_WORDS * _WORD)
    b_values = rounded(tl.reshape(b_values, (BLOCK_WORDS * _WORD,)), OUTPUT)
    tl.store(out + first * _WORD + o_out, b_values, o_out < left * _WORD)


def dequantize(weight: Quantized, out: torch.Tensor, *, config: LaunchConfig = DEQUANTIZE) -> None:
    """Dequantize a checked weight into `out`."""
    if isinstance(weight, FourBit) and _flat(weight, out):
        given = parts(weight) | {"packed": weight.packed.view(torch.uint32)}
        with on(weight.device):
            dequant_blockwise_kernel[(triton.cdiv(weight.elements, config.columns),)](
                **given, out=as_stored(out), OUTPUT=ELEMENTS[out.dtype], words=weight.elements // _WORD.value,
                **_constants(weight.blocksize, weight.nested.blocksize if weight.nested else 0, config),
                WHOLE=weight.elements % config.columns == 0,
                **options(config),
            )  # fmt: skip
    elif isinstance(weight, Int8Rows) and bands_launch.fits(weight, out):
        bands_launch.run(weight, None, out)
    else:
        merge_any(weight, None, out)


def _flat(weight: FourBit, out: torch.Tensor) -> bool:
    return (
        weight.elements > 0
        and weight.elements % _WORD.value == 0
        and out.is_contiguous()
        and not (weight.packed.data_ptr() % ALIGNED_BYTES or out.data_ptr() % ALIGNED_BYTES)
    )


def _constants(blocksize: int, nested: int, config: LaunchConfig) -> dict[str, int]:
    return {
        "BLOCKSIZE": blocksize,
        "NESTED": nested,
        "BLOCK_WORDS": config.columns // _WORD.value,
    }


def variants() -> list[aot.Variant]:
    """4-bit codes to each dtype, with and without double quantization, and int8."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    kinds = {bf16: "*u16", fp16: "*fp16", fp32: "*fp32"}
    four_bit = [
        aot.Variant(
            name=f"dequant_blockwise 4-bit{', nested' if nested else ''} to {ELEMENTS[out]}, aligned",
            kernel=dequant_blockwise_kernel,
            types=types(nested=bool(nested)) | {"packed": "*u32", "out": kinds[out], "words": "i64"},
            constants=_constants(64, nested, DEQUANTIZE) | {"OUTPUT": ELEMENTS[out], "WHOLE": True},
            config=DEQUANTIZE,
        )
        for nested, out in ((256, bf16), (0, fp16), (256, fp32))
    ]
    return [
        *four_bit,
        bands_launch.variant("dequant_blockwise", INT8, 0, Form(None, bf16, add=False)),
    ]
