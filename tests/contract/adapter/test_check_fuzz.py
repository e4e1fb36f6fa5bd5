"""Whatever stands in an adapter, the check returns: findings, or none."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_contract.adapter.config import parse_config
from lora_contract.adapter.types import TYPES
from lora_contract.errors import RegistryError
from tests.support.adapters import check_files, make_draft, values

KEYS = [
    "r", "lora_alpha", "peft_type", "target_modules", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern",
    "layers_to_transform", "layers_pattern", "bias", "use_dora", "use_rslora", "lora_bias", "init_lora_weights", "init_r",
    "task_type", "trainable_token_indices", "token_indices", "target_parameters", "base_model_name_or_path", "auto_mapping",
    "feedforward_modules", "hybrid_r", "alpha", "vector_length", "num_virtual_tokens", "num_layers", "token_dim", "cpt_token_ids",
    "layer_replication", "kasa_config", "ensure_weight_tying", "revision", "lora_dropout",
]  # fmt: skip
WORDS = st.sampled_from(
    ["q_proj", "v_proj", ".*", "(a+)+", "(", "lm_head", "all-linear", "model.layers.0", "é", "\\", "", "score", *TYPES]
)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 70_000),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        WORDS,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
def test_any_config(base, changes):
    result = check_files(make_draft(base, **changes).files(), base)
    for finding in result.findings:
        assert finding.message
        json.dumps(finding.message)


NAME_PARTS = st.sampled_from(
    ["base_model", "model", "layers", "0", "1", "self_attn", "q_proj", "lora_A", "lora_B", "weight", "bias", "base_layer", "default",
     "embed_tokens", "lm_head", "norm", "token_adapter", "trainable_tokens_delta", "lora_embedding_A", "prompt_embeddings", "vera_A"]
)  # fmt: skip
NAMES = st.lists(NAME_PARTS, min_size=1, max_size=9).map(".".join)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(TYPES)),
    st.dictionaries(NAMES, st.lists(st.sampled_from([0, 1, 2, 4, 16, 32]), max_size=3).map(tuple), max_size=6),
    st.sampled_from(["F32", "BF16"]),
)
def test_any_tensors(base, peft_type, tensors, dtype):
    draft = make_draft(base, peft_type=peft_type)
    if peft_type != "LORA":
        draft.tensors = {}
    for name, shape in tensors.items():
        draft.tensors.setdefault(name, values(shape, dtype=dtype))
    result = check_files(draft.files(), base)
    parameters = {f"base_model.model.{tensor.name}" for tensor in base.tensors}
    if parameters & tensors.keys():
        assert not result.accepted


@given(st.binary(max_size=80))
def test_any_bytes_are_a_config_or_refused(data):
    with pytest.raises(RegistryError) as caught:
        parse_config(data)
    assert caught.value.code == "rejected"


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6), st.sampled_from(sorted(TYPES)))
def test_a_config_is_typed_or_refused(changes, peft_type):
    document = {**changes, "peft_type": peft_type}
    try:
        config = parse_config(json.dumps(document).encode())
    except RegistryError as error:
        assert error.code == "rejected"
        return
    assert config.r is None or 0 <= config.r <= 65_536
    assert config.alpha is None or abs(config.alpha) < 4e38
    assert config.raw == document
    assert list(config.rank_pattern) == list(changes.get("rank_pattern") or {})
