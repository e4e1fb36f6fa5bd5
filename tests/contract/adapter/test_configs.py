"""Configs of public adapters, and what PEFT makes of them: read as it reads them, or refused by name."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from lora_contract.adapter import agreement
from lora_contract.adapter.agreement import read_config
from lora_contract.adapter.saved import OWN_HEADS, saved_modules, saves_modules
from lora_contract.adapter.types import TYPES
from lora_contract.errors import RegistryError
from tests.support.adapters import check_files, make_draft, values
from tests.support.wild import WILD, require_wild

os.environ.setdefault("HF_HUB_OFFLINE", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    import torch
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.peft_model import (
        PeftModelForQuestionAnswering,
        PeftModelForSequenceClassification,
        PeftModelForTokenClassification,
    )

pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = sorted(path.name for path in WILD.glob("configs/*.json")) or ["none beside the checkout"]
FOREIGN = {"none-none.json": "mlx-lm", "none-none-2.json": "mlx-lm"}
SAME = ("peft_type", "task_type", "target_modules", "r", "bias", "use_rslora", "use_dora", "fan_in_fan_out", "revision")


@pytest.mark.parametrize("name", NAMES)
def test_a_public_config_is_read_as_peft_reads_it_or_refused_by_name(tmp_path: Path, name: str) -> None:
    data = (require_wild("configs") / name).read_bytes()
    (tmp_path / "adapter_config.json").write_bytes(data)
    if name in FOREIGN:
        with pytest.raises(RegistryError, match=FOREIGN[name]):
            read_config(data)
        assert "peft_type" not in json.loads(data)
        return
    ours, theirs = read_config(data), peft.PeftConfig.from_pretrained(tmp_path)
    assert ours.base_model == theirs.base_model_name_or_path
    for key in SAME:
        if hasattr(theirs, key) and not (ours.peft_type == "ADALORA" and key == "r"):
            assert _plain(getattr(theirs, key)) == _plain(getattr(ours, key)), key
    assert ours.rank_pattern == (getattr(theirs, "rank_pattern", None) or {})
    assert ours.alpha_pattern == (getattr(theirs, "alpha_pattern", None) or {})
    assert ours.modules_to_save == (getattr(theirs, "modules_to_save", None) or [])
    assert ours.alpha == getattr(theirs, "lora_alpha", ours.alpha)
    mapping = theirs.auto_mapping or {}
    assert (ours.model_class, ours.library) == (mapping.get("base_model_class"), mapping.get("parent_library"))


def _plain(value: Any) -> Any:
    if isinstance(value, set | list):
        return sorted(value)
    return None if value is None else getattr(value, "value", value)


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(8, 8)
        self.score = torch.nn.Linear(8, 2)
        self.classifier = torch.nn.Linear(8, 2)
        self.qa_outputs = torch.nn.Linear(8, 2)


def test_heads_are_those_that_peft_adds_by_itself() -> None:
    for task, kind in (
        ("SEQ_CLS", PeftModelForSequenceClassification),
        ("TOKEN_CLS", PeftModelForTokenClassification),
        ("QUESTION_ANS", PeftModelForQuestionAnswering),
    ):
        config = peft.LoraConfig(task_type=task, target_modules=["q_proj"])
        kind(Tiny(), config)
        assert sorted(config.modules_to_save) == sorted(OWN_HEADS[task])


def test_types_that_save_modules_are_those_of_peft() -> None:
    for name, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        peft_type = str(getattr(name, "value", name))
        if not TYPES[peft_type].prompt:
            assert saves_modules(peft_type) == ("modules_to_save" in kind.__dataclass_fields__), name


@pytest.mark.parametrize("key", ["bias", "rank_pattern", "alpha_pattern"])
def test_a_null_is_refused_where_peft_fails_on_it(key: str) -> None:
    """PEFT reads the option where it injects a layer: each type is asked by making a model with it."""
    made = set()
    for name, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        peft_type = str(getattr(name, "value", name))
        if key not in kind.__dataclass_fields__ or TYPES[peft_type].prompt:
            continue
        fails = _fails(kind, key)
        if fails is not None:
            made.add(peft_type)
            assert fails == (agreement.disagreement({"peft_type": peft_type, key: None}) is not None), peft_type
    assert len(made) >= (12 if key == "bias" else 3), made


def _fails(kind: Any, key: str) -> bool | None:
    """None if the type cannot be made on this model with these options."""
    options: dict[str, Any] = {"target_modules": ["q_proj"]}
    if "r" in kind.__dataclass_fields__ and kind.__name__ not in ("OFTConfig",):
        options["r"] = 2
    if kind.__name__ == "AdaLoraConfig":
        options = {"target_modules": ["q_proj"], "total_step": 10, "init_r": 2, "target_r": 2}
    options |= _SIZES.get(kind.__name__, {})
    try:
        peft.get_peft_model(Tiny(), kind(**options))
    except Exception:  # noqa: BLE001  # options that a type needs
        return None
    try:
        config = kind(**options)
        setattr(config, key, None)
        peft.get_peft_model(Tiny(), config)
    except (AttributeError, TypeError):
        return True
    return False


_SIZES: dict[str, dict[str, Any]] = {
    "BOFTConfig": {"boft_block_size": 4},
    "C3AConfig": {"block_size": 4},
    "FourierFTConfig": {"n_frequency": 4},
    "WaveFTConfig": {"n_frequency": 4},
    "VBLoRAConfig": {"vector_length": 4, "num_vectors": 4, "topk": 2},
    "GraloraConfig": {"gralora_k": 2},
    "OFTConfig": {"oft_block_size": 4, "r": 0},
}


def test_modules_to_save_that_the_file_does_not_hold_are_told(base) -> None:
    draft = make_draft(base, modules_to_save=["v_head", "model.norm"])
    draft.tensors["base_model.model.model.norm.weight"] = values((32,))
    found = check_files(draft.files(), base)
    assert found.accepted
    assert [(finding.code, finding.found) for finding in found.findings] == [("saved-module-unknown", "v_head")]
    assert "neither the file nor the base" in found.findings[0].message


def test_the_class_of_the_trained_model_is_a_fact(base) -> None:
    mapping = {"parent_library": "diffusers.models.unets.unet_2d_condition", "base_model_class": "UNet2DConditionModel"}
    for library in (mapping["parent_library"], "lerobot.policies", "timm.models", "transformers_modules.acme.modeling"):
        draft = make_draft(base, task_type=None, auto_mapping={**mapping, "parent_library": library})
        found = check_files(draft.files(), base)
        assert found.accepted and found.facts is not None
        assert (found.facts.model_class, found.facts.library) == ("UNet2DConditionModel", library)


def test_the_diffusers_config_of_the_world_is_read() -> None:
    config = read_config((require_wild("diffusers-parent-library") / "adapter" / "adapter_config.json").read_bytes())
    assert config.library == "diffusers.models.unets.unet_2d_condition"
    assert config.model_class == "UNet2DConditionModel" and config.task_type is None


def test_heads_that_the_config_does_not_name_are_saved() -> None:
    config = read_config(json.dumps({"peft_type": "LORA", "task_type": "SEQ_CLS", "modules_to_save": None}).encode())
    assert saved_modules(config) == ("classifier", "score")
