"""Merges into models of diffusers against `merge_and_unload` of PEFT and `fuse_lora` of diffusers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.folders import read_base
from lora_kernels.merging import merge_folder
from lora_reg.importing.formats import pipeline, tensors
from tests.diffusion.conftest import Saved
from tests.support import diffusers
from tests.support.adapters import base_reader, check_files, fingerprint_of, read_folder

NEAR = 1e-6
"""Of merges in float32 whose updates are of order one."""


@pytest.fixture(scope="module")
def peft(sd: Saved, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What PEFT saves for the U-Net: linear layers, convolutions of size 1 and 3, patterns."""
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    sd.unet.save_pretrained(folder)
    return folder


def test_a_folder_of_peft_fits_the_component_and_the_pipeline(sd: Saved, peft: Path) -> None:
    assert json.loads((peft / "adapter_config.json").read_text())["auto_mapping"]["parent_library"].startswith("diff")
    for base in (sd.folder / "unet", sd.folder):
        fingerprint = read_base(base)[0]
        found = check_files(read_folder(peft), fingerprint, read_base=base_reader(base))
        assert found.accepted and found.facts is not None, found.findings
        assert found.facts.model_class == "UNet2DConditionModel"
        assert found.facts.components == ({} if base.name == "unet" else {"unet": 41})


@pytest.mark.parametrize("of", ["component", "pipeline"])
def test_merged_as_peft_merges(sd: Saved, peft: Path, tmp_path: Path, of: str) -> None:
    base = sd.folder / "unet" if of == "component" else sd.folder
    merge_folder(base, [(peft, 1.0)], tmp_path / "merged", min_kept=None)
    wanted = copy.deepcopy(sd.unet).merge_and_unload()
    if of == "component":
        ours = diffusers.load().UNet2DConditionModel.from_pretrained(tmp_path / "merged")
    else:
        loaded = sd.load(tmp_path / "merged")
        ours = loaded.unet
        assert diffusers.difference(loaded.vae, sd.pipeline.vae) == 0
        assert diffusers.difference(loaded.text_encoder, sd.pipeline.text_encoder) == 0
    assert diffusers.difference(ours, wanted) < NEAR
    assert diffusers.difference(ours, sd.pipeline.unet) > 0.1


TYPES: dict[str, Callable[[], PeftConfig]] = {
    "all-linear": lambda: LoraConfig(r=2, target_modules="all-linear", use_rslora=True),
    "dora": lambda: LoraConfig(r=2, target_modules=["to_q", "conv1", "proj_in", "proj_out"], use_dora=True),
    "loha": lambda: LoHaConfig(r=2, target_modules=["to_k", "conv2", "proj_in", "norm_out.linear"]),
    "saved": lambda: LoraConfig(
        r=2, target_modules=r".*to_[qv]$", modules_to_save=["conv_out", "proj_out"], bias="lora_only"
    ),
}
MODELS = {"unet": diffusers.unet, "sd3": diffusers.sd3, "flux": diffusers.flux}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("of", MODELS)
def test_types_of_adapters_on_kinds_of_models(quiet: None, tmp_path: Path, of: str, kind: str) -> None:
    base = diffusers.seeded(MODELS[of], 3)
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(copy.deepcopy(base), TYPES[kind]())
    torch.default_generator.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    found = check_files(read_folder(tmp_path / "adapter"), read_base(tmp_path / "base")[0])
    assert found.accepted, found.findings
    merge_folder(tmp_path / "base", [(tmp_path / "adapter", 1.0)], tmp_path / "merged", min_kept=None)
    loaded = PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "base"), str(tmp_path / "adapter"))
    ours = type(base).from_pretrained(tmp_path / "merged")
    assert diffusers.difference(ours, loaded.merge_and_unload()) < NEAR
    assert diffusers.difference(ours, base) > 0.05


def test_several_adapters_of_several_components(sd: Saved, peft: Path, tmp_path: Path) -> None:
    """Weights, and an adapter of the text encoder beside one of the U-Net and a file of both."""
    sd.text.save_pretrained(tmp_path / "text")
    both = converted(sd, sd.save_lora(tmp_path / "lora") / "pytorch_lora_weights.safetensors", tmp_path / "both")
    merge_folder(sd.folder, [(peft, 0.5), (tmp_path / "text", 1.0), (both, 0.5)], tmp_path / "merged", min_kept=None)
    ours = sd.load(tmp_path / "merged")
    assert diffusers.difference(ours.unet, copy.deepcopy(sd.unet).merge_and_unload()) < NEAR
    text = copy.deepcopy(sd.text)
    for module in text.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 1.5)
    assert diffusers.difference(ours.text_encoder, text.merge_and_unload()) < NEAR


def converted(sd: Saved, file: Path, folder: Path) -> Path:
    values, metadata = tensors.load(file.read_bytes())
    made = pipeline.convert(values, metadata, base=read_base(sd.folder)[0], name="default/sd")
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(made.config_bytes())
    (folder / "adapter_model.safetensors").write_bytes(tensors.dump(made.tensors, made.metadata))
    return folder


def test_a_file_of_both_parts_merges_as_diffusers_fuses_it(sd: Saved, tmp_path: Path) -> None:
    lora = sd.save_lora(tmp_path / "lora")
    both = converted(sd, lora / "pytorch_lora_weights.safetensors", tmp_path / "both")
    found = check_files(read_folder(both), read_base(sd.folder)[0], accept_base=True)
    assert found.accepted and found.facts is not None
    assert found.facts.components == {"text_encoder": 6, "unet": 41}
    assert found.facts.ranks == {"2": 33, "3": 8, "4": 6}
    merge_folder(sd.folder, [(both, 1.0)], tmp_path / "merged", min_kept=None)
    ours = sd.load(tmp_path / "merged")
    for source in (lora, both):
        theirs = sd.load()
        theirs.load_lora_weights(str(source))
        theirs.fuse_lora()
        theirs.unload_lora_weights()
        assert diffusers.difference(ours.unet, theirs.unet) < NEAR
        assert diffusers.difference(ours.text_encoder, theirs.text_encoder) < NEAR


def test_shards_and_a_dtype(sd: Saved, peft: Path, tmp_path: Path) -> None:
    """Indexes of components are those of the result; configs of diffusers get no dtype, those of transformers do."""
    sd.pipeline.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    assert (tmp_path / "base" / index).exists()
    merge_folder(tmp_path / "base", [(peft, 1.0)], tmp_path / "merged", dtype="bfloat16", min_kept=None)
    wanted = copy.deepcopy(sd.unet).merge_and_unload()
    ours = sd.load(tmp_path / "merged")
    assert diffusers.difference(ours.unet, wanted.to(torch.bfloat16)) < 0.01
    assert json.loads((tmp_path / "merged/text_encoder/config.json").read_text())["dtype"] == "bfloat16"
    assert "dtype" not in json.loads((tmp_path / "merged/unet/config.json").read_text())
    sizes = [json.loads((tmp_path / part / index).read_text())["metadata"]["total_size"] for part in ("base", "merged")]
    assert sizes[0] == 2 * sizes[1]


def test_nf4_is_refused_for_a_pipeline(sd: Saved, peft: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="NF4 is for single models"):
        merge_folder(sd.folder, [(peft, 1.0)], tmp_path / "merged", dtype="nf4")


def test_a_pipeline_has_the_config_of_each_model(sd: Saved) -> None:
    fingerprint = read_base(sd.folder)[0]
    assert fingerprint.architecture == "StableDiffusionPipeline"
    assert sorted(fingerprint.config["_components"]) == ["text_encoder", "unet", "vae"]
    names = {tensor.name.partition(".")[0] for tensor in fingerprint.tensors}
    assert names == {"text_encoder", "unet", "vae"}
    assert fingerprint_of(sd.folder / "unet").architecture == "UNet2DConditionModel"
