"""Names of the modules of Flux in its original code, as kohya's scripts write them, in diffusers' terms.

The original has the projections of an attention as one module, diffusers as several: the rows of the one's factor B are
those of the others, one after the other, and its factor A is that of each.
"""

from __future__ import annotations

import re
from typing import Final

_BLOCK: Final = re.compile(r"(double|single)_blocks_(\d{1,3})_(.+)\Z")
_DOUBLE: Final = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
}
_SINGLE: Final = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
_OTHERS: Final = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in_in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in_out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in_out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in_in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in_out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
}
SWAPPED: Final = "norm_out.linear"
"""Its rows are shift and scale in the original, scale and shift in diffusers."""


def places(path: str) -> tuple[str, ...]:
    """The paths in diffusers for one of the original, with `_` for `.`; empty if it is none of Flux."""
    found = _BLOCK.match(path)
    if found is None:
        return (_OTHERS[path],) if path in _OTHERS else ()
    kind, number, rest = found[1], int(found[2]), found[3]
    parts = (_DOUBLE if kind == "double" else _SINGLE).get(rest, ())
    blocks = "transformer_blocks" if kind == "double" else "single_transformer_blocks"
    return tuple(f"{blocks}.{number}.{part}" for part in parts)
