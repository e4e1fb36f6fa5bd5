"""The block sizes of bitsandbytes. Apart from `layout`, so that the GPU operations need neither msgspec nor numpy."""

from __future__ import annotations

from typing import Final

BLOCKSIZES: Final = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NESTED_BLOCKSIZE: Final = 256
