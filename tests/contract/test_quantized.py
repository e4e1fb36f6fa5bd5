"""Adapters for quantized bases: their modules are those of the model, under whatever names the weights are stored."""

from __future__ import annotations

import pytest

from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.modules import modules_of
from lora_contract.quantized import method_of, quantization_of, without_quantization
from tests.support import adapters
from tests.support.adapters import values

Q = "model.layers.0.self_attn.q_proj"
Parts = dict[str, tuple[str, tuple[int, ...]]]
# A layer of 32 inputs and 64 outputs.
STORED: dict[str, Parts] = {
    "gptq": {
        "qweight": ("I32", (4, 64)),
        "qzeros": ("I32", (1, 8)),
        "scales": ("F16", (1, 64)),
        "g_idx": ("I32", (32,)),
    },
    "awq": {"qweight": ("I32", (32, 8)), "qzeros": ("I32", (1, 8)), "scales": ("F16", (1, 64))},
    "awq gemv": {"qweight": ("I32", (64, 4)), "qzeros": ("I32", (64, 4)), "scales": ("F16", (64, 32))},
    "fp8": {"weight": ("F8_E4M3", (64, 32)), "weight_scale_inv": ("F32", (1, 1)), "activation_scale": ("F32", ())},
    "e8m0": {"weight": ("F8_E4M3", (64, 32)), "weight_scale_inv": ("F8_E8M0", (1, 1))},
    "nvfp4": {
        "weight_packed": ("U8", (64, 16)),
        "weight_scale": ("F8_E4M3", (64, 2)),
        "weight_global_scale": ("F32", (1,)),
    },
    "int8": {"weight": ("I8", (64, 32)), "weight_scale": ("BF16", (64, 1))},
}
PARTLY_KNOWN: dict[str, Parts] = {
    "gptq without g_idx": {"qweight": ("I32", (4, 64)), "qzeros": ("I32", (1, 8)), "scales": ("F16", (1, 64))},
    "packed": {
        "weight_packed": ("I32", (64, 4)),
        "weight_scale": ("BF16", (64, 1)),
        "weight_shape": ("I64", (2,)),
    },
    "modelopt": {
        "weight": ("U8", (64, 16)),
        "weight_scale": ("F8_E4M3", (64, 2)),
        "weight_scale_2": ("F32", ()),
    },
}


def base_of(parts: Parts) -> BaseFingerprint:
    shapes = {
        "model.embed_tokens.weight": ("BF16", (96, 32)),
        "lm_head.weight": ("BF16", (96, 32)),
        **{f"{Q}.{leaf}": part for leaf, part in parts.items()},
    }
    tensors = tuple(BaseTensor(name, dtype, shape, "f", 0, 0) for name, (dtype, shape) in sorted(shapes.items()))
    return BaseFingerprint("LlamaForCausalLM", "llama", {}, tensors, {}, 96, False, None, None)


def findings(base: BaseFingerprint, out: int, in_: int) -> list[str]:
    draft = adapters.Draft(
        {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj"],
            "base_model_name_or_path": adapters.BASE_ID,
        },
        {
            f"base_model.model.{Q}.lora_A.weight": values((4, in_)),
            f"base_model.model.{Q}.lora_B.weight": values((out, 4), seed=1),
        },
    )
    return [finding.code for finding in adapters.check_files(draft.files(), base).findings]


@pytest.mark.parametrize("kind", STORED)
def test_an_adapter_is_checked_against_the_layer(kind: str) -> None:
    base = base_of(STORED[kind])
    module = modules_of(base).modules[Q]
    assert (module.kind, module.out, module.in_) == ("linear", 64, 32)
    assert findings(base, 64, 32) == []
    assert findings(base, 64, 40) == findings(base, 72, 32) == ["shape-mismatch"]


@pytest.mark.parametrize("kind", PARTLY_KNOWN)
def test_what_headers_do_not_tell_is_not_checked(kind: str) -> None:
    base = base_of(PARTLY_KNOWN[kind])
    assert modules_of(base).modules[Q].kind == "linear"
    assert findings(base, 64, 32) == []


@pytest.mark.parametrize("leaf", ["qweight", "weight_packed"])
def test_rows_of_a_quantized_embedding_are_not_in_a_fingerprint(leaf: str) -> None:
    """They never were, and pins are digests of fingerprints."""
    tensors = (BaseTensor(f"model.embed_tokens.{leaf}", "I32", (96, 4), "f", 0, 0),)
    base = BaseFingerprint("LlamaForCausalLM", "llama", {}, tensors, {}, None, False, None, None)
    module = modules_of(base).modules["model.embed_tokens"]
    assert (module.kind, module.out, module.in_) == ("embedding", None, None)


def test_the_quantization_of_a_config() -> None:
    known = {"quant_method": "GPTQ", "bits": 4}
    for config in (
        {"quantization_config": known},
        {"compression_config": known},
        {"text_config": {"quantization_config": known, "hidden_size": 8}},
    ):
        assert quantization_of(config) == known and method_of(config) == "gptq"
        assert quantization_of(without_quantization({**config, "hidden_size": 8})) == {}
    assert method_of({"quantization_config": {"load_in_4bit": True}}) == "bitsandbytes"
    assert method_of({}) == method_of({"quantization_config": None}) == ""
