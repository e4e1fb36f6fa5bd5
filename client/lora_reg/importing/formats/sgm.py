"""Names of U-Net modules in the original Stable Diffusion code, as kohya writes them for SDXL, in diffusers' terms.

The original numbers all blocks in a row (`input_blocks_4_1_…`); diffusers groups them by resolution, with
`layers_per_block` of the U-Net's config in each. Both are written with `_` for `.`.
"""

from __future__ import annotations

import re
from typing import Final

_NAME: Final = re.compile(r"(input_blocks|output_blocks|middle_block)_(\d{1,2})_(.+)\Z")
_INNER: Final = re.compile(r"(\d)_(.+)\Z")
_RESNET: Final = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_MIDDLE: Final = {"0": "resnets_0", "1": "attentions_0", "2": "resnets_1"}


def to_diffusers(path: str, layers_per_block: int) -> str | None:
    """The path in diffusers' terms; None if it is not one of a block of the original code."""
    found = _NAME.match(path)
    if found is None:
        return None
    kind, number, rest = found[1], int(found[2]), found[3]
    if kind == "middle_block":
        place = _MIDDLE.get(found[2])
        return None if place is None else f"mid_block_{place}_{_RESNET.get(rest, rest)}"
    inner = _INNER.match(rest)
    if inner is None:
        return None
    position, rest = inner[1], inner[2]
    if kind == "input_blocks":
        number -= 1  # the first is the convolution before all blocks
    if number < 0:
        return None
    block, layer = divmod(number, layers_per_block + 1)
    blocks = "down_blocks" if kind == "input_blocks" else "up_blocks"
    if rest == "op":
        return f"{blocks}_{block}_downsamplers_0_conv"
    if rest == "conv":
        return f"{blocks}_{block}_upsamplers_0_conv"
    if position == "0":
        return f"{blocks}_{block}_resnets_{layer}_{_RESNET.get(rest, rest)}"
    return f"{blocks}_{block}_attentions_{layer}_{rest}" if position == "1" else None
