"""The table of PEFT types: the tensors of each per module and for the whole model, with their shapes.

Names and shapes are those that peft 0.21.2 writes (seen by saving each type on a small model). A shape is a tuple of
whole numbers, `out` and `in` (the module's sizes as a linear map; an embedding's rows and width), `r` (the rank that
the config gives the module), `2r`, `*` (anything), or another letter, which must have the same value throughout the
module. A type with `prefix` instead of slots is checked by name alone: a module of the base, then a segment that
begins with the prefix. No base parameter has such a name, so such a tensor cannot overwrite one.

A type is added by a row here, a room of that name in `lora_kernels.types`, and a formula in the tests' oracle.
"""

from __future__ import annotations

from typing import Final

from lora_contract.adapter import sizes
from lora_contract.adapter.slots import AdapterType, Shape, Slot


def _slots(*rows: tuple[str, *tuple[Shape, ...]]) -> tuple[Slot, ...]:
    return tuple(Slot(row[0], row[1:]) for row in rows)


def _optional(suffix: str, *shapes: Shape, integer: bool = False) -> Slot:
    return Slot(suffix, shapes, required=False, integer=integer)


# Why a type is not merged: the rest of the sentence "Merging ... is not possible: ...".
_TOKENS = "its virtual tokens are input beside the text, no change of any weight"
_PREFIXES = "its keys and values stand before those of the text in every layer, no change of any weight"
_ROUTED = "how much of it acts depends on the input"

_LINEAR = frozenset({"linear"})
_LINEAR_CONV = frozenset({"linear", "conv"})
_LORA = frozenset({"linear", "embedding", "conv", "experts", "mha"})

TYPES: Final[dict[str, AdapterType]] = {
    # LORA's slots depend on the kind of the module: see `lora.py`.
    "LORA": AdapterType(
        kinds=_LORA,
        inert=("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_A", "lora_B"),
        factors=("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_A", "lora_B"),
        room="lora",
    ),
    "ADALORA": AdapterType(
        slots=_slots(("lora_A", ("k", "in")), ("lora_B", ("out", "k")), ("lora_E", ("k", 1))),
        inert=("lora_B", "lora_E", "lora_A"),
        factors=("lora_A", "lora_B", "lora_E"),
        room="adalora",
    ),
    "LOHA": AdapterType(
        kinds=_LINEAR_CONV,
        slots=(
            *_slots(
                ("hada_w1_a", ("out", "r"), ("r", "*")),
                ("hada_w1_b", ("r", "in"), ("r", "*")),
                ("hada_w2_a", ("out", "r"), ("r", "*")),
                ("hada_w2_b", ("r", "in"), ("r", "*")),
            ),
            _optional("hada_t1", ("r", "r", "*"), ("r", "r", "*", "*")),
            _optional("hada_t2", ("r", "r", "*"), ("r", "r", "*", "*")),
        ),
        inert=("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        factors=("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        room="loha",
    ),
    "LOKR": AdapterType(
        kinds=_LINEAR_CONV,
        slots=(
            _optional("lokr_w1", ("*", "*")),
            _optional("lokr_w1_a", ("*", "r")),
            _optional("lokr_w1_b", ("r", "*")),
            _optional("lokr_w2", ("*", "*"), ("*", "*", "*"), ("*", "*", "*", "*")),
            _optional("lokr_w2_a", ("*", "r"), ("r", "*")),
            _optional("lokr_w2_b", ("r", "*")),
            _optional("lokr_t2", ("r", "r", "*"), ("r", "r", "*", "*")),
        ),
        inert=("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
        factors=("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
        fault=sizes.lokr,
        room="lokr",
    ),
    "IA3": AdapterType(
        kinds=_LINEAR_CONV,
        slots=_slots(("ia3_l", ("out", 1), (1, "in"), (1, "out", 1, 1), (1, "in", 1, 1), (1, "*", 1, 1, 1))),
        identity=(("ia3_l", 1),),
        room="ia3",
    ),
    "VERA": AdapterType(
        slots=_slots(("vera_lambda_b", ("out",)), ("vera_lambda_d", ("r",))),
        globals_=("vera_A", "vera_B"),
        inert=("vera_lambda_b", "vera_lambda_d"),
        room="vera",
    ),
    "PVERA": AdapterType(
        slots=_slots(("pvera_lambda_b", ("out",)), ("pvera_lambda_d", ("2r",))),
        globals_=("pvera_A", "pvera_B"),
        inert=("pvera_lambda_b",),
        room="vera",
    ),
    "RANDLORA": AdapterType(
        slots=(
            *_slots(("randlora_lambda", ("r", "n")), ("randlora_gamma", ("n", "*"))),
            _optional("randlora_A"),
            _optional("randlora_B"),
        ),
        globals_=("randlora_A", "randlora_B"),
        inert=("randlora_lambda", "randlora_gamma"),
        room="randlora",
    ),
    "FOURIERFT": AdapterType(
        slots=_slots(("fourierft_spectrum", ("*",))), inert=("fourierft_spectrum",), room="fourierft"
    ),
    "WAVEFT": AdapterType(slots=_slots(("waveft_spectrum", ("*",))), inert=("waveft_spectrum",), room="waveft"),
    "C3A": AdapterType(
        slots=_slots(("c3a_kernel", ("*", "*", "*"))), inert=("c3a_kernel",), fault=sizes.c3a, room="c3a"
    ),
    "SHIRA": AdapterType(
        slots=(*_slots(("shira_weight", ("n",))), Slot("shira_indices", ((2, "n"),), integer=True)),
        inert=("shira_weight",),
        limits={"shira_indices": ("out", "in")},
        room="shira",
    ),
    "SUPERTUNING": AdapterType(
        prefix="supertuning_",
        inert=("supertuning_values",),
        limits={"supertuning_indices": ("out*in",)},
        room="supertuning",
    ),
    "VBLORA": AdapterType(
        slots=(
            _optional("vblora_logits_A", ("r", "*", "*")),
            _optional("vblora_logits_B", ("*", "r", "*")),
            _optional("vblora_logits_A_topk_weights"),
            _optional("vblora_logits_B_topk_weights"),
            _optional("vblora_logits_A_topk_indices", integer=True),
            _optional("vblora_logits_B_topk_indices", integer=True),
        ),
        globals_=("vblora_vector_bank",),
        fault=sizes.vblora,
        room="vblora",
    ),
    "UNILORA": AdapterType(prefix="unilora_", globals_=("unilora_theta_d",), room="unilora"),
    "TINYLORA": AdapterType(
        slots=(
            _optional("tinylora_A", ("r", "in")),
            _optional("tinylora_B", ("out", "r")),
            _optional("tinylora_P", ("*", "r", "r")),
        ),
        globals_=("tinylora_v.*",),
        room="tinylora",
    ),
    "GRALORA": AdapterType(prefix="gralora_", inert=("gralora_B",), fault=sizes.gralora, room="gralora"),
    "MISS": AdapterType(
        slots=_slots(("miss_block", ("r", "out"), ("*", "*"), ("*", "*", "*"))), inert=("miss_block",), room="miss"
    ),
    "BONE": AdapterType(
        slots=_slots(("bone_block", ("r", "out"), ("*", "*"), ("*", "*", "*"))), inert=("bone_block",), room="miss"
    ),
    "HIRA": AdapterType(
        kinds=frozenset({"linear", "embedding", "conv"}),
        slots=(
            _optional("hira_A", ("r", "in"), ("r", "in", "*"), ("r", "in", "*", "*")),
            _optional("hira_B", ("out", "r"), ("out", "r", "*"), ("out", "r", "*", "*")),
            _optional("hira_embedding_A", ("r", "out")),
            _optional("hira_embedding_B", ("in", "r")),
        ),
        inert=("hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B"),
        factors=("hira_A", "hira_B"),
        room="hira",
    ),
    "DELORA": AdapterType(
        slots=(
            *_slots(("delora_A", ("r", "in")), ("delora_B", ("out", "r")), ("delora_lambda", (1,))),
            _optional("delora_w_norm", ("in",)),
        ),
        inert=("delora_lambda", "delora_B"),
        room="delora",
    ),
    "GLORA": AdapterType(prefix="glora_", room="glora"),
    "OFT": AdapterType(
        kinds=frozenset({"linear", "conv", "embedding"}),
        slots=(
            _optional("oft_R.weight", ("*", "*")),
            _optional("oft_embedding_R.weight", ("*", "*")),
            _optional("oft_r", ("*", "*", "*")),
        ),
        inert=("oft_R.weight", "oft_embedding_R.weight"),
        fault=sizes.oft,
        room="oft",
    ),
    "BOFT": AdapterType(
        kinds=_LINEAR_CONV,
        slots=_slots(("boft_R", ("*", "*", "b", "b")), ("boft_s", ("out", 1), (1, "out"))),
        identity=(("boft_R", 0), ("boft_s", 1)),
        fault=sizes.boft,
        room="boft",
    ),
    "HRA": AdapterType(kinds=_LINEAR_CONV, slots=_slots(("hra_u", ("in", "r"), ("*", "r"))), room="hra"),
    "ROAD": AdapterType(
        slots=_slots(("road_theta", ("n",)), ("road_alpha", ("n",))),
        identity=(("road_theta", 0), ("road_alpha", 1)),
        fault=sizes.road,
        room="road",
    ),
    "PSOFT": AdapterType(
        prefix="psoft_",
        unmerged=(
            "it turns the base in the frame of its largest singular vectors, whose signs no file fixes: "
            "the decomposition of another library gives another model"
        ),
    ),
    "OSF": AdapterType(
        slots=_slots(
            ("osf_svd_params.U_low", ("out", "k")),
            ("osf_svd_params.S_low", ("k",)),
            ("osf_svd_params.V_low", ("k", "in")),
        ),
        unmerged=(
            "it replaces what is left of the base behind its largest singular values, which takes a "
            "full decomposition of every weight and depends on the library where singular values are "
            "close"
        ),
    ),
    "FROD": AdapterType(
        prefix="frod_",
        globals_=("frod_V.*", "frod_s_indices.*", "frod_s_size.*"),
        integer_globals=True,
        unmerged=(
            "half of its factors are not in the file: PEFT computes them from the base when it loads "
            "the adapter, through an inverse that loses digits"
        ),
    ),
    "ADAMSS": AdapterType(
        prefix="adamss_",
        unmerged=("its rows are grouped by a clustering of the base (scikit-learn's k-means) that is not in the file"),
    ),
    "DEFT": AdapterType(slots=_slots(("deft_P", ("out", "r")), ("deft_R", ("r", "in"))), room="deft"),
    "PEANUT": AdapterType(prefix="peanut_", room="peanut"),
    "LN_TUNING": AdapterType(
        kinds=frozenset({"norm", "linear", "embedding", "conv"}),
        slots=(_optional("ln_tuning_layers.weight", ("out",)), _optional("ln_tuning_layers.bias", ("out",))),
        room="ln_tuning",
    ),
    "TRAINABLE_TOKENS": AdapterType(
        kinds=frozenset({"embedding", "linear"}),
        slots=_slots(("trainable_tokens_delta", ("n", "in"))),
        room="trainable_tokens",
    ),
    "BEFT": AdapterType(slots=_slots(("beft_bias", (1, "out"), ("out",))), inert=("beft_bias",), room="beft"),
    "POLY": AdapterType(prefix="poly_", inert=("poly_lora_A", "poly_lora_B"), room="poly"),
    "XLORA": AdapterType(
        prefix="xlora_",
        globals_=("internal_xlora_classifier.*",),
        targeted=False,
        mergeable=False,
        unmerged=f"{_ROUTED}: a classifier weighs its experts for every token",
    ),
    "LILY": AdapterType(
        prefix="lily_", mergeable=False, unmerged=f"{_ROUTED}: a router mixes its experts for every token"
    ),
    "SHADOW": AdapterType(
        prefix="shadow_",
        globals_=("shadow_backbone.*",),
        targeted=False,
        mergeable=False,
        unmerged="it runs a second, smaller model beside the layers of the base",
    ),
    "ADAPTION_PROMPT": AdapterType(
        kinds=frozenset({"linear", "container"}),
        prefix="adaption_",
        targeted=False,
        mergeable=False,
        unmerged=("its prompt is attended to in every layer beside the text, no change of any weight"),
    ),
    "PROMPT_TUNING": AdapterType(
        prompt=True, globals_=("prompt_embeddings",), targeted=False, mergeable=False, unmerged=_TOKENS
    ),
    "P_TUNING": AdapterType(
        prompt=True,
        globals_=("prompt_embeddings", "prompt_encoder.*"),
        targeted=False,
        mergeable=False,
        unmerged=_TOKENS,
    ),
    "PREFIX_TUNING": AdapterType(
        prompt=True, globals_=("prompt_embeddings",), targeted=False, mergeable=False, unmerged=_PREFIXES
    ),
    "CPT": AdapterType(prompt=True, globals_=("prompt_embeddings",), targeted=False, mergeable=False, unmerged=_TOKENS),
    "CARTRIDGE": AdapterType(
        prompt=True, globals_=("prompt_embeddings",), targeted=False, mergeable=False, unmerged=_PREFIXES
    ),
    "MULTITASK_PROMPT_TUNING": AdapterType(
        prompt=True,
        globals_=("prompt_embeddings", "prefix_task_cols", "prefix_task_rows"),
        targeted=False,
        mergeable=False,
        unmerged=_TOKENS,
    ),
}
