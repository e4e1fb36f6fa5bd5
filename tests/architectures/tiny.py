"""Tiny random models of every architecture: a class's own default config, with its sizes cut down by their names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Final

import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

# The automatic classes of transformers that the sweep covers, by the name it gives them.
FAMILIES: Final = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "multimodal": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "vision": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "speech": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "ctc": "MODEL_FOR_CTC_MAPPING_NAMES",
}
VOCABULARY: Final = 96
WIDTH: Final = 32
_LAYERS: Final = 2
# Size by the name of a setting; the first pattern that matches the whole name decides.
_RULES: Final = tuple(
    (re.compile(pattern), size)
    for pattern, size in (
        (r"(.*_)?vocab_size(_per_layer_input)?|n_words|num_embeddings", VOCABULARY),
        (r"(.*_)?num_(hidden_|encoder_|decoder_)?layers|(en|de)coder_layers|n_layers?|num_layer|layers|depth", _LAYERS),
        (r"(.*_)?(q|kv)_lora_rank", 16),
        (r"qk_(rope|nope)_head_dim", 8),
        (r"(.*_)?(heads?|heads?_num|head_count)|n_head(s|_kv)?", 2),
        (r"(.*_)?(head_dim|attention_head_size)|d_kv|dim_head|rotary_dim", 16),
        (r"(.*_)?(intermediate_size|ffn_dim|d_ff|d_inner|mlp_dim|inner_dim|ffn_hidden_size|dim_feedforward)", 48),
        (r"hidden_size_per_layer_input", 8),
        (
            r"(.*_)?(hidden_size|d_model|n_embd|embed(ding)?_dim|embedding_size|emb_dim|hidden_dim|projection_dim)|dim",
            32,
        ),
        (r"(.*_)?num_(local_|routed_)?experts|n_routed_experts|moe_num_experts", 4),
        (r"(.*_)?(num_experts_per_tok|moe_topk|moe_k|top_k)", 2),
        (r"(.*_)?max_position_embeddings|n_positions|max_(source|target)_positions|n_ctx|(.*_)?max_seq_len", 512),
        (r"image_size|input_size", 32),
        (r"patch_size", 8),
        (r"num_mel_bins", 16),
        (r"num_conv_pos_embedding_groups", 4),
    )
)


def classes(family: str) -> dict[str, str]:
    """The model classes of a family, each with a model type that it is for."""
    found: dict[str, str] = {}
    for model_type, names in getattr(modeling_auto, FAMILIES[family]).items():
        for name in [names] if isinstance(names, str) else names:
            found.setdefault(name, model_type)
    return found


def every_class() -> dict[str, str]:
    """The model classes of all automatic classes, each with a model type that it is for."""
    found: dict[str, str] = {}
    for mapping in sorted(dir(modeling_auto)):
        if mapping.startswith("MODEL_") and mapping.endswith("_MAPPING_NAMES"):
            for model_type, names in getattr(modeling_auto, mapping).items():
                for name in [names] if isinstance(names, str) else names:
                    if model_type in CONFIG_MAPPING_NAMES:
                        found.setdefault(name, model_type)
    return found


def config_class(model: type, model_type: str) -> Any:
    """The config class that a model class takes."""
    own = getattr(model, "config_class", None)
    return own if own is not None else getattr(transformers, CONFIG_MAPPING_NAMES[model_type])


def tiny_config(kind: Any, ties: Mapping[str, bool] | None = None, *, shrink: bool = True) -> Any:
    """The config of a tiny model. ties: `tie_word_embeddings` by the path of the nested config; unset for others."""
    return kind(**_shrunk(kind(), "", ties or {}, shrink))


def _shrunk(default: Any, path: str, ties: Mapping[str, bool], shrink: bool) -> dict[str, Any]:
    fields = _fields(default)
    made: dict[str, Any] = {}
    layers = next((value for name, value in fields.items() if name in _DEPTHS and isinstance(value, int)), 0)
    for number, (name, value) in enumerate(fields.items()):
        if isinstance(value, transformers.PretrainedConfig):
            made[name] = type(value)(**_shrunk(value, f"{path}.{name}".removeprefix("."), ties, shrink))
        elif shrink and (smaller := _smaller(name, value, number, layers)) is not value:
            made[name] = smaller
    for name, value in _OWN.get(default.model_type, {}).items() if shrink else ():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = value
    if path in ties:
        made["tie_word_embeddings"] = ties[path]
    return made


# What the rules make inconsistent, by model type; None for the default.
_OWN: Final[dict[str, dict[str, Any]]] = {
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 16},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 16},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "xlnet": {"d_head": 16},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl_text": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "esm": {"vocab_size": VOCABULARY},
    "reformer": {"axial_pos_embds": False, "attention_head_size": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "wav2vec2-bert": {"vocab_size": VOCABULARY},
    "wav2vec2-conformer": {"vocab_size": VOCABULARY},
    "perceiver": {"d_latents": 32, "num_latents": 8, "d_model": 32, "max_position_embeddings": 64},
    "swinv2": {"embed_dim": 24},
    "donut-swin": {"embed_dim": 24},
    "neomme": {"layer_types": ["sliding_attention", "full_attention"]},
    "emu3": {"vocabulary_map": {"<image>": 95}},
    "chameleon": {"vocabulary_map": {"<image>": 95, "IMGIMGAZ": 90}},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "blt_local_encoder": {"encoder_hash_byte_group_vocab": 64},
    "blt_global_transformer": {"encoder_hash_byte_group_vocab": 64},
    "blt_patcher": {"encoder_hash_byte_group_vocab": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
}


_DEPTHS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")


def _fields(config: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(config) if field.init and not field.name.startswith("_")]
    aliases = {*getattr(type(config), "attribute_map", {})}
    values = {name: _value(config, name) for name in names if name not in aliases}
    return {name: value for name, value in values.items() if value is not _UNSET}


_UNSET: Final = object()


def _value(config: Any, name: str) -> Any:
    """A setting's value; `_UNSET` if it has one per layer, which no config takes back."""
    try:
        return getattr(config, name)
    except Exception:
        return _UNSET


def _smaller(name: str, value: Any, number: int, layers: int) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if name.endswith(("token_id", "token_index")) and value >= VOCABULARY:
            return VOCABULARY - 1 - number % 40
        for pattern, size in _RULES:
            if pattern.fullmatch(name):
                return min(size, value) if value > 0 else value
        return value
    if isinstance(value, list | tuple) and layers > _LAYERS and len(value) == layers:
        return type(value)(value[:_LAYERS])
    if isinstance(value, Mapping) and "mrope_section" in value:
        return {**value, "mrope_section": [2, 3, 3]}
    if isinstance(value, list | tuple) and name in ("eos_token_id", "bos_token_id"):
        return min(value[0], VOCABULARY - 1)
    return value
