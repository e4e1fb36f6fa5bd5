"""LoRA files of kohya's scripts and of the original code, converted for a pipeline, against diffusers and the formula."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.folders import read_base
from lora_kernels.merging import merge_folder
from lora_reg.importing.formats import pipeline, tensors
from tests.diffusion.conftest import Saved
from tests.support import diffusers
from tests.support.adapters import check_files, read_folder

NEAR = 1e-6
Part = tuple[str, Any, float]
"""Component, model with a LoRA of PEFT, alpha in the file."""


def convert(base: Path, values: dict[str, torch.Tensor], folder: Path) -> Path:
    """Convert a file for a pipeline, and check the result as a push does."""
    folder.mkdir()
    save_file(values, folder / "file.safetensors")
    given, metadata = tensors.load((folder / "file.safetensors").read_bytes())
    made = pipeline.convert(given, metadata, base=read_base(base)[0], name="default/sd")
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_bytes(made.config_bytes())
    (adapter / "adapter_model.safetensors").write_bytes(tensors.dump(made.tensors, made.metadata))
    found = check_files(read_folder(adapter), read_base(base)[0], accept_base=True)
    assert found.accepted, found.findings
    assert not [finding for finding in found.findings if finding.severity == "warning"]
    return adapter


def compare(load: Callable[[Path], Any], base: Path, adapter: Path, parts: list[Part], folder: Path) -> None:
    """Our merge, what diffusers fuses from our folder, and the formula: alpha / rank * up @ down."""
    merge_folder(base, [(adapter, 1.0)], folder, min_kept=None)
    ours, theirs = load(folder), load(base)
    theirs.load_lora_weights(str(adapter))
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    for component, model, alpha in parts:
        scaled = copy.deepcopy(model)
        for module in scaled.modules():
            if hasattr(module, "scaling") and isinstance(module.scaling, dict):
                module.scaling["default"] = alpha / module.r["default"]
        wanted = scaled.merge_and_unload()
        assert diffusers.difference(getattr(ours, component), wanted) < NEAR
        assert diffusers.difference(getattr(ours, component), getattr(theirs, component)) < NEAR


@pytest.mark.parametrize("prefix", ["lora_te_text_model_", "lora_te1_text_model_"])
def test_kohya_on_a_pipeline(sd: Saved, tmp_path: Path, prefix: str) -> None:
    """Convolutions of size 1 and 3 beside linear layers, ranks of their own, an alpha for each part."""
    values = {**diffusers.kohya(sd.unet, "lora_unet_", 1.5), **diffusers.kohya(sd.text, prefix, 3.0)}
    adapter = convert(sd.folder, values, tmp_path / "kohya")
    parts: list[Part] = [("unet", sd.unet, 1.5), ("text_encoder", sd.text, 3.0)]
    compare(sd.load, sd.folder, adapter, parts, tmp_path / "merged")


def test_kernels_of_size_one_have_either_shape(sd: Saved, tmp_path: Path) -> None:
    values = diffusers.kohya(sd.unet, "lora_unet_", 1.5)
    turned = {
        name: value[..., None, None] if "_to_q." in name and "alpha" not in name else value
        for name, value in values.items()
    }
    turned |= {name: value[:, :, 0, 0].contiguous() for name, value in values.items() if "_proj_in.lora" in name}
    adapter = convert(sd.folder, turned, tmp_path / "kohya")
    compare(sd.load, sd.folder, adapter, [("unet", sd.unet, 1.5)], tmp_path / "merged")


def test_dora_and_rslora_that_diffusers_saved(sd: Saved, tmp_path: Path) -> None:
    """What the header says of a part is kept: `load_lora_weights` computes the same from our folder."""
    options: dict[str, Any] = {"use_dora": True, "use_rslora": True, "r": 4, "rank_pattern": {"conv1": 2}}
    model = diffusers.adapted(copy.deepcopy(sd.pipeline.unet), ["to_q", "conv1"], **options)
    save = type(sd.pipeline).save_lora_weights
    settings = model.peft_config["default"].to_dict()
    save(tmp_path / "lora", unet_lora_layers=diffusers.factors(model), unet_lora_adapter_metadata=settings)
    given, metadata = tensors.load((tmp_path / "lora" / "pytorch_lora_weights.safetensors").read_bytes())
    made = pipeline.convert(given, metadata, base=read_base(sd.folder)[0], name="default/sd")
    assert (made.config["use_dora"], made.config["use_rslora"]) == (True, True)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_bytes(made.config_bytes())
    (adapter / "adapter_model.safetensors").write_bytes(tensors.dump(made.tensors, made.metadata))
    found = check_files(read_folder(adapter), read_base(sd.folder)[0], accept_base=True)
    assert found.accepted, found.findings
    merge_folder(sd.folder, [(adapter, 1.0)], tmp_path / "merged", min_kept=None)
    ours, theirs = sd.load(tmp_path / "merged"), sd.load()
    theirs.load_lora_weights(str(adapter))
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    assert diffusers.difference(ours.unet, model.merge_and_unload()) < NEAR
    assert diffusers.difference(ours.unet, theirs.unet) < NEAR


def original(name: str) -> str:
    """A name of kohya's for a U-Net of diffusers with one layer in a block, as its SDXL scripts write it."""
    for pattern, blocks, first in (("down_blocks", "input_blocks", 1), ("up_blocks", "output_blocks", 0)):
        found = re.match(rf"lora_unet_{pattern}_(\d)_(resnets|attentions|downsamplers|upsamplers)_(\d)_(.*)", name)
        if found is None:
            continue
        block, kind, layer, rest = int(found[1]), found[2], int(found[3]), found[4]
        inner = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2}[kind]
        layer = {"downsamplers": 1, "upsamplers": 1}.get(kind, layer)
        number = block * 2 + layer + first
        return f"lora_unet_{blocks}_{number}_{inner}_{_inner(rest, down=kind == 'downsamplers')}"
    found = re.match(r"lora_unet_mid_block_(resnets|attentions)_(\d)_(.*)", name)
    if found is not None:
        place = 1 if found[1] == "attentions" else 2 * int(found[2])
        return f"lora_unet_middle_block_{place}_{_inner(found[3])}"
    outside = {
        "add_embedding_linear_1": "label_emb_0_0",
        "time_embedding_linear_2": "time_embed_2",
        "conv_in": "input_blocks_0_0",
    }
    for ours, theirs in outside.items():
        if name.startswith(f"lora_unet_{ours}."):
            return f"lora_unet_{theirs}" + name.removeprefix(f"lora_unet_{ours}")
    return name


def _inner(rest: str, *, down: bool = False) -> str:
    for ours, theirs in (("conv1", "in_layers_2"), ("conv2", "out_layers_3"), ("time_emb_proj", "emb_layers_1")):
        if rest.startswith(ours):
            return rest.replace(ours, theirs, 1)
    rest = rest.replace("conv_shortcut", "skip_connection")
    return rest.replace("conv.", "op.", 1) if down else rest


def test_names_of_the_original_code_on_a_pipeline_of_two_text_encoders(quiet: None, tmp_path: Path) -> None:
    made = diffusers.stable_diffusion_xl(tmp_path / "base", tmp_path)
    targets = ["to_q", "to_out.0", "conv1", "proj_in", "conv_shortcut", "conv", "time_emb_proj"]
    targets += ["add_embedding.linear_1", "time_embedding.linear_2", "conv_in"]
    unet = diffusers.adapted(copy.deepcopy(made.unet), targets)
    first = diffusers.adapted(copy.deepcopy(made.text_encoder), ["q_proj", "fc2"], seed=6)
    second = diffusers.adapted(copy.deepcopy(made.text_encoder_2), ["v_proj", "out_proj"], seed=7, r=3)
    names = {original(name): value for name, value in diffusers.kohya(unet, "lora_unet_", 1.0).items()}
    assert not [
        name for name in names if "_blocks_" in name and not re.search("(input|output|transformer)_blocks", name)
    ]
    values = {
        **names,
        **diffusers.kohya(first, "lora_te1_text_model_", 2.0),
        **diffusers.kohya(second, "lora_te2_", 4.0),
    }
    adapter = convert(tmp_path / "base", values, tmp_path / "kohya")
    parts: list[Part] = [("unet", unet, 1.0), ("text_encoder", first, 2.0), ("text_encoder_2", second, 4.0)]
    compare(type(made).from_pretrained, tmp_path / "base", adapter, parts, tmp_path / "merged")


def test_flux_by_diffusers_and_by_kohya(quiet: None, tmp_path: Path) -> None:
    """Fused projections of the original are divided; the last modulation has its halves in the other order."""
    made = diffusers.flux_pipeline(tmp_path / "base", tmp_path)
    model = diffusers.adapted(copy.deepcopy(made.transformer), ["to_q", "to_k", "to_v", "proj_mlp", "norm_out.linear"])
    type(made).save_lora_weights(
        tmp_path / "lora",
        transformer_lora_layers=diffusers.factors(model),
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )
    from safetensors import safe_open

    with safe_open(tmp_path / "lora" / "pytorch_lora_weights.safetensors", "pt") as file:
        assert all(name.startswith("transformer.") for name in file.keys())  # noqa: SIM118
    given, metadata = tensors.load((tmp_path / "lora" / "pytorch_lora_weights.safetensors").read_bytes())
    converted = pipeline.convert(given, metadata, base=read_base(tmp_path / "base")[0], name="flux")
    assert converted.config["lora_alpha"] == 3
    factors = diffusers.factors(model)
    block = "single_transformer_blocks.0"
    down = factors[f"{block}.attn.to_q.lora_A.weight"]
    fused = [f"{block}.attn.to_q", f"{block}.attn.to_k", f"{block}.attn.to_v", f"{block}.proj_mlp"]
    shift, scale = factors["norm_out.linear.lora_B.weight"].chunk(2)[::-1]
    values = {
        "lora_unet_single_blocks_0_linear1.lora_down.weight": down,
        "lora_unet_single_blocks_0_linear1.lora_up.weight": torch.cat(
            [factors[f"{path}.lora_B.weight"] for path in fused]
        ),
        "lora_unet_single_blocks_0_linear1.alpha": torch.tensor(5.0),
        "lora_unet_final_layer_adaLN_modulation_1.lora_down.weight": factors["norm_out.linear.lora_A.weight"],
        "lora_unet_final_layer_adaLN_modulation_1.lora_up.weight": torch.cat([shift, scale]),
        "lora_unet_final_layer_adaLN_modulation_1.alpha": torch.tensor(5.0),
    }
    expected = diffusers.adapted(copy.deepcopy(made.transformer), [*fused, "norm_out.linear"])
    state = {f"base_model.model.{path}.lora_A.default.weight": down for path in fused}
    state |= {f"base_model.model.{path}.lora_B.default.weight": factors[f"{path}.lora_B.weight"] for path in fused}
    for half in "AB":
        state[f"base_model.model.norm_out.linear.lora_{half}.default.weight"] = factors[
            f"norm_out.linear.lora_{half}.weight"
        ]
    missing, unexpected = expected.load_state_dict(state, strict=False)
    assert not unexpected and not [name for name in missing if "lora_" in name]
    adapter = convert(tmp_path / "base", values, tmp_path / "kohya")

    def load(folder: Path) -> Any:
        return type(made).from_pretrained(folder, text_encoder_2=None, tokenizer_2=None)

    compare(load, tmp_path / "base", adapter, [("transformer", expected, 5.0)], tmp_path / "merged")


@pytest.fixture
def older(sd: Saved, tmp_path: Path) -> Path:
    """The pipeline as transformers 4 saved it: the text encoder has `text_model.` before its names."""
    shutil.copytree(sd.folder, tmp_path / "older")
    file = tmp_path / "older" / "text_encoder" / "model.safetensors"
    save_file({f"text_model.{name}": value for name, value in load_file(file).items()}, file, {"format": "pt"})
    return tmp_path / "older"


@pytest.mark.parametrize("of", ["pipeline", "component"])
@pytest.mark.parametrize("saved_by", [4, 5])
def test_an_adapter_of_a_text_encoder_has_either_names(
    sd: Saved, older: Path, tmp_path: Path, saved_by: int, of: str
) -> None:
    """What PEFT saved with transformers 4 and 5, on a base that was saved with the other and with the same."""
    sd.text.save_pretrained(tmp_path / "adapter")
    if saved_by == 4:
        file = tmp_path / "adapter" / "adapter_model.safetensors"
        start = "base_model.model."
        named = {f"{start}text_model.{name.removeprefix(start)}": value for name, value in load_file(file).items()}
        save_file(named, file, {"format": "pt"})
        assert all(name.startswith("base_model.model.text_model.encoder") for name in named)
    wanted = copy.deepcopy(sd.text).merge_and_unload()
    for number, base in enumerate((older, sd.folder)):
        folder = base / "text_encoder" if of == "component" else base
        assert check_files(read_folder(tmp_path / "adapter"), read_base(folder)[0]).accepted
        merge_folder(folder, [(tmp_path / "adapter", 1.0)], tmp_path / f"merged-{number}", min_kept=None)
        place = tmp_path / f"merged-{number}" / ("" if of == "component" else "text_encoder")
        assert diffusers.difference(type(sd.pipeline.text_encoder).from_pretrained(place), wanted) < NEAR


def test_a_text_encoder_that_transformers_4_saved(sd: Saved, older: Path, tmp_path: Path) -> None:
    """kohya's names lead to either; the version has the names of its base."""
    values = diffusers.kohya(sd.text, "lora_te_text_model_", 3.0)
    adapter = convert(older, values, tmp_path / "kohya")
    assert all(name.startswith("text_encoder.text_model.") for name in load_file(adapter / "adapter_model.safetensors"))
    compare(sd.load, older, adapter, [("text_encoder", sd.text, 3.0)], tmp_path / "merged")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "has only text_encoder, unet, vae"),
        ("lora_unet_down_blocks_9_attn.lora_up.weight", "unet of default/sd has no module"),
    ],
)
def test_what_the_pipeline_lacks_is_named(sd: Saved, tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(RegistryError, match=reason):
        convert(sd.folder, {name: torch.zeros(2, 2)}, tmp_path / "kohya")
