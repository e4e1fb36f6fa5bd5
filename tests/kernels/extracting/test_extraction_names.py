"""Extracted adapters have the names that today's transformers gives the modules, whatever the files call them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lora_contract.errors import RegistryError
from lora_kernels.extracting import extract_folders

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def _tuned(base: Path, folder: Path) -> Path:
    """A fine-tune of every linear layer by a change of rank 2."""
    folder.mkdir()
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(base / "model.safetensors")
    for name, value in sorted(tensors.items()):
        if value.dim() == 2 and "layer" in name and "embed" not in name:
            rows, columns = value.shape
            change = torch.randn(rows, 2, generator=generator) @ torch.randn(2, columns, generator=generator)
            tensors[name] = value + 0.1 * change
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_an_adapter_of_a_base_with_older_names_loads_in_peft(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SIZES, image_size=28, patch_size=14)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "base")
    assert any(".encoder.layer." in name for name in load_file(tmp_path / "base" / "model.safetensors"))
    tuned = _tuned(tmp_path / "base", tmp_path / "tuned")
    extract_folders(tuned, tmp_path / "base", tmp_path / "out", rank=2)
    load = transformers.ViTForImageClassification.from_pretrained
    image = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        wanted, plain = load(tuned).eval()(image).logits, load(tmp_path / "base").eval()(image).logits
        found = PeftModel.from_pretrained(load(tmp_path / "base"), str(tmp_path / "out")).eval()(image).logits
    assert (found - wanted).abs().max() < 1e-3 * (plain - wanted).abs().max()


def test_what_transformers_splits_gets_no_factors(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(**SIZES, image_size=28, patch_size=14, use_swiglu_ffn=True)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "base")
    assert any("weights_in" in name for name in load_file(tmp_path / "base" / "model.safetensors"))
    tuned = _tuned(tmp_path / "base", tmp_path / "tuned")
    with pytest.raises(RegistryError, match=r"transformers makes .*gate_proj\.weight and .*up_proj\.weight of it"):
        extract_folders(tuned, tmp_path / "base", tmp_path / "out", rank=2)
