"""`numeric.philox` in kernels, for several keys and the same counters below 2^32.

With the counter's other words zero, the first round multiplies the counter alone, which all keys share, and half of the
second round multiplies the key alone. A product of 64 bits is one instruction.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lora_kernels.ops.rounding import COMPILED

PRODUCT = tl.constexpr("{ .reg .b64 all; mul.wide.u32 all, $2, $3; mov.b64 {$1, $0}, all; }")
_MULTIPLIER_0 = tl.constexpr(0xD2511F53)
_MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
_WEYL_0 = tl.constexpr(0x9E3779B9)
_WEYL_1 = tl.constexpr(0xBB67AE85)


@triton.jit
def first_round(counters: tl.tensor) -> tl.tensor:
    """What keys share: high and low half of a product. counters: uint32."""
    return _product(counters, _MULTIPLIER_0)


@triton.jit
def random_words(high: tl.tensor, low: tl.tensor, key_0: tl.tensor, key_1: tl.tensor) -> tl.tensor:
    """The four words of each counter, uint32, as `numeric.philox.random_bits` gives them. high, low: of
    `first_round`. key_0, key_1: the low and the high word of the key, uint32 scalars."""
    # Second round; the words 0 and 1 are key_0 and 0 before it.
    high_0, low_0 = _product(key_0, _MULTIPLIER_0)
    high_1, word_1 = _product(high ^ key_1, _MULTIPLIER_1)
    key_0, key_1 = key_0 + _WEYL_0, key_1 + _WEYL_1
    word_0, word_2 = high_1 ^ key_0, high_0 ^ low ^ key_1
    word_3 = tl.zeros_like(word_2) + low_0
    for _ in tl.static_range(8):
        key_0, key_1 = key_0 + _WEYL_0, key_1 + _WEYL_1
        high_0, low_0 = _product(word_0, _MULTIPLIER_0)
        high_1, low_1 = _product(word_2, _MULTIPLIER_1)
        word_0, word_1, word_2, word_3 = high_1 ^ word_1 ^ key_0, low_1, high_0 ^ word_3 ^ key_1, low_0
    return word_0, word_1, word_2, word_3


@triton.jit
def _product(word: tl.tensor, MULTIPLIER: tl.constexpr) -> tl.tensor:
    """The high and the low half of a product of 64 bits."""
    if COMPILED:
        # The compiler makes two products of some.
        multiplier = tl.full([], MULTIPLIER, tl.uint32)
        return tl.inline_asm_elementwise(
            PRODUCT, "=r,=r,r,r", [word, multiplier], dtype=(tl.uint32, tl.uint32), is_pure=True, pack=1
        )
    else:
        product = word.to(tl.uint64) * MULTIPLIER
        return (product >> 32).to(tl.uint32), product.to(tl.uint32)
