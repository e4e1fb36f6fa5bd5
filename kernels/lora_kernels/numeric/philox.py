"""Counter-based random numbers: an element of a tensor gets the same number in any order, on a CPU or a GPU.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11) with the key and counter layout of
Triton's `tl.randint4x(seed, offset)`: counter (offset, offset >> 32, 0, 0), key (seed, seed >> 32). Element e of a
tensor takes word e % 4 of counter e // 4.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]

_ROUNDS: Final = 10
_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_LOW: Final = np.uint64(0xFFFFFFFF)
_WORD: Final = np.uint64(32)


def stream_key(seed: int, name: str) -> int:
    """The 64-bit key of a tensor's stream. seed: any integer; name: unique to the tensor within the run."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8], "little")


def random_bits(key: int, first: int, count: int) -> U32:
    """32 random bits for each of the elements `first` to `first + count` of the stream `key`. Shape (count,)."""
    start, stop = first // 4, -(-(first + count) // 4)
    counters = np.arange(start, max(stop, start), dtype=np.uint64)
    words = _philox(counters, key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF)
    return words.reshape(-1)[first - 4 * start : first - 4 * start + count]


def uniform(key: int, first: int, count: int) -> npt.NDArray[np.float32]:
    """Numbers in [0, 1) with 24 random bits each, float32, shape (count,)."""
    return (random_bits(key, first, count) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def keep_limit(density: float) -> int:
    """The n for which `uniform(...) < density` equals `random_bits(...) >> 8 < n`, without rounding the density."""
    return math.ceil(density * 2**24)


def keep_mask(key: int, first: int, count: int, density: float) -> npt.NDArray[np.bool_]:
    """True with probability `density`, for each of the elements `first` to `first + count`. Shape (count,)."""
    return (random_bits(key, first, count) >> np.uint32(8)) < np.uint32(keep_limit(density))


def _philox(counters: npt.NDArray[np.uint64], key0: int, key1: int) -> U32:
    c0, c1 = counters & _LOW, counters >> _WORD
    c2, c3 = np.zeros_like(c0), np.zeros_like(c0)
    product0, product1 = np.empty_like(c0), np.empty_like(c0)
    for _ in range(_ROUNDS):
        np.multiply(c0, _MULTIPLIERS[0], out=product0)
        np.multiply(c2, _MULTIPLIERS[1], out=product1)
        np.right_shift(product1, _WORD, out=c0)
        np.right_shift(product0, _WORD, out=c2)
        c0 ^= c1
        c2 ^= c3
        c0 ^= np.uint64(key0)
        c2 ^= np.uint64(key1)
        np.bitwise_and(product1, _LOW, out=c1)
        np.bitwise_and(product0, _LOW, out=c3)
        key0, key1 = (key0 + _WEYL[0]) & 0xFFFFFFFF, (key1 + _WEYL[1]) & 0xFFFFFFFF
    words = np.empty((len(c0), 4), np.uint32)
    for column, word in enumerate((c0, c1, c2, c3)):
        words[:, column] = word
    return words
