"""Adapters of pipelines: how they are split into parts, and what is refused by name. Synthetic, without diffusers."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from lora_contract.adapter.check import CheckResult
from lora_contract.adapter.parts import METADATA, of_part
from lora_contract.base import BaseFingerprint
from lora_contract.errors import RegistryError
from lora_contract.fingerprint import build_fingerprint
from lora_contract.tensors import write_header
from tests.support.adapters import Tensor, check_files, values, weights

MODULES = {
    "unet": ("down.to_q", "down.to_v"),
    "text_encoder": ("self_attn.q_proj",),
    "text_encoder_2": ("self_attn.q_proj",),
}
CLASSES = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModel"}


def pipeline(*, width: int = 8) -> BaseFingerprint:
    """A pipeline of three models, two of one class. width: of the second text encoder."""
    files: dict[str, bytes] = {}
    for name, paths in MODULES.items():
        sizes = (width, width) if name == "text_encoder_2" else (8, 8)
        key = "_class_name" if name == "unet" else "architectures"
        files[f"{name}/config.json"] = json.dumps({key: CLASSES[name] if name == "unet" else [CLASSES[name]]}).encode()
        stem = "diffusion_pytorch_model" if name == "unet" else "model"
        files[f"{name}/{stem}.safetensors"] = weights({f"{path}.weight": values(sizes) for path in paths})
    index = {"_class_name": "TinyPipeline", **{name: ["library", kind] for name, kind in CLASSES.items()}}
    files["model_index.json"] = json.dumps(index).encode()
    table = {path: (len(data), f"sha256:{hashlib.sha256(data).hexdigest()}") for path, data in files.items()}
    return build_fingerprint(table, lambda path, offset, length: files[path][offset : offset + length])


def adapter(names: dict[str, int], stated: Any = None, **config: Any) -> dict[str, bytes]:
    """Factors of rank 2 for modules by their full names, of these widths."""
    tensors: dict[str, Tensor] = {}
    for name, width in names.items():
        tensors[f"{name}.lora_A.weight"] = values((2, width), seed=name)
        tensors[f"{name}.lora_B.weight"] = values((width, 2), seed=f"{name}b")
    metadata = {"format": "pt", **({METADATA: json.dumps(stated)} if stated is not None else {})}
    header = write_header([(name, dtype, shape) for name, (dtype, shape, _) in tensors.items()], metadata)
    document = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config}
    return {
        "adapter_config.json": json.dumps(document).encode(),
        "adapter_model.safetensors": header + b"".join(data for _, _, data in tensors.values()),
    }


def findings(found: CheckResult) -> list[str]:
    return [finding.message for finding in found.findings if finding.severity == "error"]


PARTS = {"unet.down.to_q": 8, "text_encoder.self_attn.q_proj": 8}


def test_a_file_of_parts_is_checked_part_by_part() -> None:
    targets = ["unet.to_q", "text_encoder.q_proj"]
    found = check_files(adapter(PARTS, target_modules=targets), pipeline())
    assert found.accepted and found.facts is not None, found.findings
    assert (found.facts.components, found.facts.modules) == ({"text_encoder": 1, "unet": 1}, 2)
    wider = check_files(adapter({**PARTS, "unet.down.to_v": 9}, target_modules=[*targets, "unet.to_v"]), pipeline())
    assert findings(wider)[0].startswith("unet: The tensor base_model.model.down.to_v.lora_A.weight")
    lost = check_files(adapter(PARTS, target_modules=[*targets, "unet.to_v"]), pipeline())
    assert "unet: target_modules of adapter_config.json includes down.to_v" in findings(lost)[0]


@pytest.mark.parametrize(
    ("stated", "alpha", "said"),
    [
        (None, 2, None),
        (None, 4, "would use 1."),
        ({"unet.r": 2, "unet.lora_alpha": 4, "text_encoder.r": 2, "text_encoder.lora_alpha": 4}, 4, None),
        ({"unet.r": 2, "unet.lora_alpha": 4}, 4, "text_encoder.self_attn.q_proj the scale 2; diffusers"),
        ({"unet.r": 2, "unet.lora_alpha": 2, "text_encoder.r": 2, "text_encoder.lora_alpha": 4}, 4, "unet.down.to_q"),
        ({"unet.r": 2, "unet.use_dora": True}, 2, "unet.down.to_q"),
        ([], 4, "would use 1."),
        ({"unet.r": "two"}, 2, "has r = a string"),
    ],
)
def test_what_diffusers_would_compute_must_agree(stated: Any, alpha: int, said: str | None) -> None:
    config = {"target_modules": ["unet.to_q", "text_encoder.q_proj"], "lora_alpha": alpha}
    found = findings(check_files(adapter(PARTS, stated, **config), pipeline()))
    assert (found == []) if said is None else said in found[0]


@pytest.mark.parametrize(
    ("names", "config", "said"),
    [
        ({"vae.conv": 8}, {}, "the component vae, which the pipeline does not have"),
        ({"unet.down.to_q": 8, "base_model.model.down.to_v": 8}, {}, "none of them has its modules"),
        ({"base_model.model.self_attn.q_proj": 8}, {}, "text_encoder and text_encoder_2 have its modules"),
        ({"base_model.model.other": 8}, {}, "none of them has its modules"),
        (PARTS, {"target_modules": ".*to_q"}, "is a pattern; an adapter of several components lists names"),
    ],
)
def test_what_cannot_be_told_is_refused(names: dict[str, int], config: dict[str, Any], said: str) -> None:
    assert any(said in message for message in findings(check_files(adapter(names, **config), pipeline())))


def test_the_component_of_a_folder_of_peft() -> None:
    """By the class in its config, or by the widths of its modules."""
    mapping = {"base_model_class": "UNet2DConditionModel", "parent_library": "diffusers.models"}
    unet = check_files(adapter({"base_model.model.down.to_q": 8}, auto_mapping=mapping), pipeline())
    assert unet.facts is not None and unet.facts.components == {"unet": 1}
    text = {"base_model_class": "CLIPTextModel", "parent_library": "transformers"}
    found = check_files(adapter({"base_model.model.self_attn.q_proj": 6}, auto_mapping=text), pipeline(width=6))
    assert found.facts is not None and found.facts.components == {"text_encoder_2": 1}


def test_a_base_parameter_in_a_part_is_refused() -> None:
    """PEFT and diffusers would load it over the pipeline's own."""
    files = adapter(PARTS)
    raw = {
        "unet.down.to_v.weight": values((8, 8)),
        **{f"unet.down.to_q.lora_{half}.weight": values((2, 8) if half == "A" else (8, 2)) for half in "AB"},
    }
    found = findings(check_files({**files, "adapter_model.safetensors": weights(raw)}, pipeline()))
    assert any(
        "unet: The tensor base_model.model.down.to_v.weight is named like the base's own" in text for text in found
    )


def test_names_and_patterns_of_a_part() -> None:
    document = {
        "target_modules": ["unet.to_q", "text_encoder.q_proj", "to_v", "unet"],
        "rank_pattern": {"unet.a.b": 3, "^unet\\.a": 4, "^text_encoder\\.c": 5, "^x": 6},
        "r": 2,
    }
    own = of_part(document, "unet", ["unet", "text_encoder"])
    assert own["target_modules"] == ["to_q", "to_v", "unet"]
    assert own["rank_pattern"] == {"a.b": 3, "^a": 4, "^x": 6}
    with pytest.raises(RegistryError, match="exclude_modules"):
        of_part({"exclude_modules": "unet.*"}, "unet", ["unet"])
