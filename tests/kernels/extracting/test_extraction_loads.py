"""Extracted adapters in PEFT and back in a merge, on the test bed's base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_kernels.extracting import extract_folders
from lora_kernels.merging import merge_folder
from tests.kernels.checkpoints import exact, read_model, read_raw, write_safetensors
from tests.support.oracle import merge64
from tests.support.testbed import require_testbed

# peft 0.21.2 asks transformers 5.23 for an attribute that is being renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ADAPTERS = ["lora-r16-alllinear-prose", "lora-patterns-python", "rslora-r16-cheader"]


def products(adapter: Path) -> dict[str, Any]:
    stored = {name: exact(*value) for name, value in read_raw(adapter / "adapter_model.safetensors").items()}
    return {
        name.removeprefix("base_model.model.").replace("lora_A.weight", "weight"): stored[name.replace("_A", "_B")] @ a
        for name, a in stored.items()
        if name.endswith("lora_A.weight")
    }


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_merged_adapter_comes_back_to_the_rounding_of_the_merge(tmp_path: Path, name: str) -> None:
    bed = require_testbed()
    merge_folder(bed / "base", [(bed / "adapters" / name, 1.0)], tmp_path / "merged", min_kept=None)
    rank = 24 if "patterns" in name else 16
    report = extract_folders(tmp_path / "merged", bed / "base", tmp_path / "out", rank=rank)
    found = products(tmp_path / "out")
    right = merge64(bed / "base", bed / "adapters" / name)
    assert set(found) == set(right) and not report.unheld
    for tensor, merged in right.items():
        # The merge is W + D + E, E its rounding to bf16, at most half a step of each element. The best approximation
        # of D + E of D's rank is off from D + E by no more than D is, so from D by at most 2 ||E||.
        rounding = np.linalg.norm(2.0**-8 * np.abs(merged.exact))
        assert np.linalg.norm(found[tensor] - (merged.exact - merged.base)) <= 2 * rounding
        assert rounding < np.linalg.norm(merged.exact - merged.base)


def test_a_full_fine_tune_in_peft_and_merged_again(tmp_path: Path) -> None:
    """Norms, embedding and output layer changed too: all of it loads, and gives the logits of the fine-tune."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    bed = require_testbed()
    tuned = tmp_path / "tuned"
    shutil.copytree(bed / "base", tuned)
    random = np.random.default_rng(1)
    for shard in sorted(tuned.glob("*.safetensors")):
        stored = {name: (kind, exact(kind, raw)) for name, (kind, raw) in read_raw(shard).items()}
        write_safetensors(
            shard,
            {n: (kind, v + 0.05 * v.std() * random.standard_normal(v.shape) + 1e-3) for n, (kind, v) in stored.items()},
        )
    report = extract_folders(tuned, bed / "base", tmp_path / "out", keep_energy=0.999, save_changed=True)
    assert not report.dropped and report.kept_energy > 0.999
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM" and "lm_head" in config["target_modules"]

    def load(folder: Path) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    tokens = torch.arange(4, 100).reshape(2, 48)
    adapted = peft.PeftModel.from_pretrained(load(bed / "base"), tmp_path / "out").eval()
    state = adapted.get_model_status()
    assert state.adapter_model_type == "LoraModel" and state.num_adapter_layers > 0
    merge_folder(bed / "base", [(tmp_path / "out", 1.0)], tmp_path / "merged", dtype="float32")
    with torch.no_grad():
        want, plain = load(tuned)(tokens).logits, load(bed / "base")(tokens).logits
        got, merged = adapted(tokens).logits, load(tmp_path / "merged")(tokens).logits
    # The adapter lacks 0.001 of the energy, the root of which is 0.03 of the change.
    assert (got - want).norm() < 0.1 * (plain - want).norm()
    assert (merged - got).norm() < 1e-4 * got.norm()
    after = read_model(tuned)
    for tensor, value in read_model(tmp_path / "merged").items():
        rest = float(np.linalg.norm(exact(*value) - exact(*after[tensor])))
        told = {module.tensor: module.residual_norm for module in report.modules}.get(tensor, 0.0)
        # The merge rounds to float32 once, after products and a sum in float32.
        assert rest == pytest.approx(told, rel=1e-9, abs=4 * 2.0**-24 * np.linalg.norm(exact(*value))), tensor
