"""The PEFT types as data: which tensors each one has per module and for the whole model, with their shapes.

Names and shapes are those that peft 0.21.2 writes (seen by saving each type on a small model). A shape is a tuple of
whole numbers, `out` and `in` (the module's sizes as a linear map; an embedding's rows and width), `r` (the rank that
the config gives the module), `2r`, `*` (anything), or another letter, which must be the same number throughout the
module. A type with `prefix` instead of slots is checked by name alone: a module of the base, then a segment that
begins with the prefix. No base parameter is named so, hence nothing of that kind can reach one.
"""

from __future__ import annotations

from typing import Final

import msgspec

Shape = tuple[str | int, ...]


class Slot(msgspec.Struct, frozen=True):
    """A tensor of a module. `shapes`: any of them; empty: not checked. `integer`: holds indices, not values."""

    suffix: str
    shapes: tuple[Shape, ...] = ()
    required: bool = True
    integer: bool = False


class AdapterType(msgspec.Struct, frozen=True):
    """A PEFT type.

    kinds: of base modules that it adapts. globals_: model-level names, exact or ending in `.*` for a prefix.
    inert: the adapter has no effect on a module where all values of any of these are zero. identity: nor where each
    of these holds nothing but the given value.
    factors: tensors whose product is the change, for the overflow bound. targeted: target_modules decides.
    prompt: virtual tokens, no module of the base. mergeable: has a merged form (the recipe decides if we do it).
    """

    kinds: frozenset[str] = frozenset({"linear"})
    slots: tuple[Slot, ...] = ()
    prefix: str | None = None
    globals_: tuple[str, ...] = ()
    inert: tuple[str, ...] = ()
    identity: tuple[tuple[str, int], ...] = ()
    factors: tuple[str, ...] = ()
    targeted: bool = True
    prompt: bool = False
    mergeable: bool = True


def _slots(*rows: tuple[str, *tuple[Shape, ...]]) -> tuple[Slot, ...]:
    return tuple(Slot(row[0], row[1:]) for row in rows)


def _optional(suffix: str, *shapes: Shape, integer: bool = False) -> Slot:
    return Slot(suffix, shapes, required=False, integer=integer)


_LINEAR = frozenset({"linear"})
_LINEAR_CONV = frozenset({"linear", "conv"})
_LORA = frozenset({"linear", "embedding", "conv", "experts", "mha"})

TYPES: Final[dict[str, AdapterType]] = {
    # LORA's slots depend on the kind of the module: see `lora.py`.
    "LORA": AdapterType(
        kinds=_LORA,
        inert=("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_A", "lora_B"),
        factors=("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_A", "lora_B"),
    ),
    "ADALORA": AdapterType(
        slots=_slots(("lora_A", ("k", "in")), ("lora_B", ("out", "k")), ("lora_E", ("k", 1))),
        inert=("lora_B", "lora_E", "lora_A"),
        factors=("lora_A", "lora_B", "lora_E"),
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
    ),
    "IA3": AdapterType(
        kinds=_LINEAR_CONV,
        slots=_slots(("ia3_l", ("out", 1), (1, "in"), (1, "out", 1, 1), (1, "in", 1, 1), (1, "*", 1, 1, 1))),
        identity=(("ia3_l", 1),),
    ),
    "VERA": AdapterType(
        slots=_slots(("vera_lambda_b", ("out",)), ("vera_lambda_d", ("r",))),
        globals_=("vera_A", "vera_B"),
        inert=("vera_lambda_b", "vera_lambda_d"),
    ),
    "PVERA": AdapterType(
        slots=_slots(("pvera_lambda_b", ("out",)), ("pvera_lambda_d", ("2r",))),
        globals_=("pvera_A", "pvera_B"),
        inert=("pvera_lambda_b",),
    ),
    "RANDLORA": AdapterType(
        slots=(
            *_slots(("randlora_lambda", ("r", "n")), ("randlora_gamma", ("n", "*"))),
            _optional("randlora_A"),
            _optional("randlora_B"),
        ),
        globals_=("randlora_A", "randlora_B"),
        inert=("randlora_lambda", "randlora_gamma"),
    ),
    "FOURIERFT": AdapterType(slots=_slots(("fourierft_spectrum", ("*",))), inert=("fourierft_spectrum",)),
    "WAVEFT": AdapterType(slots=_slots(("waveft_spectrum", ("*",))), inert=("waveft_spectrum",)),
    "C3A": AdapterType(slots=_slots(("c3a_kernel", ("*", "*", "*"))), inert=("c3a_kernel",)),
    "SHIRA": AdapterType(
        slots=(*_slots(("shira_weight", ("n",))), Slot("shira_indices", ((2, "n"),), integer=True)),
        inert=("shira_weight",),
    ),
    "SUPERTUNING": AdapterType(prefix="supertuning_", inert=("supertuning_values",)),
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
    ),
    "UNILORA": AdapterType(prefix="unilora_", globals_=("unilora_theta_d",)),
    "TINYLORA": AdapterType(
        slots=(
            _optional("tinylora_A", ("r", "in")),
            _optional("tinylora_B", ("out", "r")),
            _optional("tinylora_P", ("*", "r", "r")),
        ),
        globals_=("tinylora_v.*",),
    ),
    "GRALORA": AdapterType(
        prefix="gralora_",
        inert=("gralora_B",),
    ),
    "MISS": AdapterType(slots=_slots(("miss_block", ("r", "out"), ("*", "*"), ("*", "*", "*"))), inert=("miss_block",)),
    "BONE": AdapterType(slots=_slots(("bone_block", ("r", "out"), ("*", "*"), ("*", "*", "*"))), inert=("bone_block",)),
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
    ),
    "DELORA": AdapterType(
        slots=(
            *_slots(("delora_A", ("r", "in")), ("delora_B", ("out", "r")), ("delora_lambda", (1,))),
            _optional("delora_w_norm", ("in",)),
        ),
        inert=("delora_lambda", "delora_B"),
    ),
    "GLORA": AdapterType(prefix="glora_"),
    "OFT": AdapterType(
        kinds=frozenset({"linear", "conv", "embedding"}),
        slots=(
            _optional("oft_R.weight", ("*", "*")),
            _optional("oft_embedding_R.weight", ("*", "*")),
            _optional("oft_r", ("*", "*", "*")),
        ),
        inert=("oft_R.weight", "oft_embedding_R.weight"),
    ),
    "BOFT": AdapterType(
        kinds=_LINEAR_CONV,
        slots=_slots(("boft_R", ("*", "*", "b", "b")), ("boft_s", ("out", 1), (1, "out"))),
        identity=(("boft_R", 0), ("boft_s", 1)),
    ),
    "HRA": AdapterType(kinds=_LINEAR_CONV, slots=_slots(("hra_u", ("in", "r"), ("*", "r")))),
    "ROAD": AdapterType(
        slots=_slots(("road_theta", ("n",)), ("road_alpha", ("n",))),
        identity=(("road_theta", 0), ("road_alpha", 1)),
    ),
    "PSOFT": AdapterType(prefix="psoft_"),
    "OSF": AdapterType(
        slots=_slots(
            ("osf_svd_params.U_low", ("out", "k")),
            ("osf_svd_params.S_low", ("k",)),
            ("osf_svd_params.V_low", ("k", "in")),
        ),
    ),
    "FROD": AdapterType(prefix="frod_", globals_=("frod_V.*", "frod_s_indices.*", "frod_s_size.*")),
    "ADAMSS": AdapterType(prefix="adamss_"),
    "DEFT": AdapterType(slots=_slots(("deft_P", ("out", "r")), ("deft_R", ("r", "in")))),
    "PEANUT": AdapterType(prefix="peanut_"),
    "LN_TUNING": AdapterType(
        kinds=frozenset({"norm", "linear", "embedding", "conv"}),
        slots=(_optional("ln_tuning_layers.weight", ("out",)), _optional("ln_tuning_layers.bias", ("out",))),
    ),
    "TRAINABLE_TOKENS": AdapterType(
        kinds=frozenset({"embedding", "linear"}),
        slots=_slots(("trainable_tokens_delta", ("n", "in"))),
    ),
    "BEFT": AdapterType(slots=_slots(("beft_bias", (1, "out"), ("out",))), inert=("beft_bias",)),
    "POLY": AdapterType(prefix="poly_", mergeable=False),
    "XLORA": AdapterType(prefix="xlora_", globals_=("internal_xlora_classifier.*",), targeted=False, mergeable=False),
    "LILY": AdapterType(prefix="lily_", mergeable=False),
    "SHADOW": AdapterType(prefix="shadow_", globals_=("shadow_backbone.*",), targeted=False, mergeable=False),
    "ADAPTION_PROMPT": AdapterType(
        kinds=frozenset({"linear", "container"}), prefix="adaption_", targeted=False, mergeable=False
    ),
    "PROMPT_TUNING": AdapterType(prompt=True, globals_=("prompt_embeddings",), targeted=False, mergeable=False),
    "P_TUNING": AdapterType(
        prompt=True, globals_=("prompt_embeddings", "prompt_encoder.*"), targeted=False, mergeable=False
    ),
    "PREFIX_TUNING": AdapterType(prompt=True, globals_=("prompt_embeddings",), targeted=False, mergeable=False),
    "CPT": AdapterType(prompt=True, globals_=("prompt_embeddings",), targeted=False, mergeable=False),
    "CARTRIDGE": AdapterType(prompt=True, globals_=("prompt_embeddings",), targeted=False, mergeable=False),
    "MULTITASK_PROMPT_TUNING": AdapterType(
        prompt=True,
        globals_=("prompt_embeddings", "prefix_task_cols", "prefix_task_rows"),
        targeted=False,
        mergeable=False,
    ),
}
