"""What compiled kernels do with bf16, emulated: the interpreter runs integer operations instead."""

from __future__ import annotations

import re

import numpy as np
import torch

from lora_kernels.numeric.dtypes import decode, encode
from lora_kernels.ops import rounding


def test_the_conversion_and_a_minimum_are_the_integer_rounding():
    """Every bf16 with float32 numbers just above, below and on the tie to its neighbour; all kinds of NaN."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    patterns = np.concatenate([upper + low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    values = patterns.view(np.float32)
    converted = torch.from_numpy(values).bfloat16().view(torch.int16).numpy()
    # As cvt.rn.bf16.f32 does (PTX ISA); all else is the same rounding.
    converted = np.where(np.isnan(values), np.int16(0x7FFF), converted)
    got = np.minimum(converted, np.int16(rounding._NAN.value)).view(np.uint16)
    np.testing.assert_array_equal(got, encode(values, "BF16", np.empty(values.shape, np.uint16)))


def test_a_shift_and_a_mask_widen_two():
    shift, mask = re.fullmatch(
        r"shl.b32 \$0, \$2, (\d+); and.b32 \$1, \$2, (0x\w+);", rounding._WIDEN_PAIR.value
    ).groups()
    halves = np.arange(1 << 16, dtype=np.uint16)
    words = np.stack([halves, halves[::-1]], 1).copy().view("<u4")[:, 0]
    got = np.stack([words << np.uint32(shift), words & np.uint32(int(mask, 16))], 1).view(np.float32)
    expected = decode(np.stack([halves, halves[::-1]], 1), "BF16", np.empty(got.shape, np.float32))
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))
