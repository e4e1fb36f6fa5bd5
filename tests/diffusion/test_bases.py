"""Folders of pipelines as the Hub holds them: what is taken, what is left out, what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.diffusion.conftest import Saved
from tests.support import diffusers
from tests.support.command import Home

LEFT_OUT = (
    "sd-v1-4.ckpt",
    "sd-v1-4.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    "unet/model.onnx",
    "text_encoder/pytorch_model.bin",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/flax_model.msgpack",
    "vae/diffusion_flax_model.msgpack",
    "vae_decoder/model.onnx",
    "unet/openvino/model.xml",
)


@pytest.fixture
def folder(sd: Saved, tmp_path: Path) -> Path:
    shutil.copytree(sd.folder, tmp_path / "pipeline")
    return tmp_path / "pipeline"


def littered(folder: Path) -> None:
    for path in LEFT_OUT:
        place = folder / path
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"\x80\x02}")


def test_what_lies_beside_is_left_out(home: Home, sd: Saved, folder: Path, tmp_path: Path) -> None:
    """The version is that of the clean folder, whatever lies beside; pulled, it is a pipeline that loads."""
    littered(folder)
    added = home.json("base", "add", "littered", folder)
    assert added["version"]["digest"] == home.json("show", "sd")["digest"]
    named = {path if path.count("/") < 2 else "unet/openvino/" for path in LEFT_OUT}
    assert set(added["left_out"]) == {"vae_decoder/" if "vae_dec" in path else path for path in named}
    home.ok("pull", "littered", "-o", tmp_path / "pulled")
    loaded = sd.load(tmp_path / "pulled")
    assert diffusers.difference(loaded.unet, sd.pipeline.unet) == 0
    assert diffusers.difference(loaded.text_encoder, sd.pipeline.text_encoder) == 0


def test_strict_names_what_is_not_part_of_a_pipeline(home: Home, folder: Path) -> None:
    littered(folder)
    refused = home.run("base", "add", "strict", folder, "--strict")
    assert refused.status == 6
    assert "unet/diffusion_pytorch_model.bin" in refused.err


def test_only_a_variant_is_refused_by_name(home: Home, sd: Saved, tmp_path: Path) -> None:
    sd.pipeline.save_pretrained(tmp_path / "variant", variant="fp16")
    refused = " ".join(home.run("base", "add", "variant", tmp_path / "variant").err.split())
    assert "text_encoder/model.fp16.safetensors and 2 more, which are a variant" in refused
    refused = " ".join(home.run("base", "add", "variant", tmp_path / "variant" / "unet").err.split())
    assert "diffusion_pytorch_model.fp16.safetensors" in refused and "variant" in refused


def test_structure_first_and_weights_later(home: Home, sd: Saved, folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text("another version")
    thin = home.json("base", "add", "thin", folder, "--manifest-only")
    sd.unet.save_pretrained(tmp_path / "adapter")
    home.ok("push", tmp_path / "adapter", "thin/adapter", "--base", "thin")
    assert home.run("merge", "thin/adapter", "--to", "thin/merged").status != 0
    assert home.json("base", "add", "thin", folder)["version"]["digest"] == thin["version"]["digest"]
    home.ok("merge", "thin/adapter", "--to", "thin/merged")


@pytest.mark.parametrize(
    ("path", "spoil", "reason"),
    [
        ("unet/config.json", {"auto_map": {"AutoModel": "unet.Evil"}}, "auto_map"),
        ("unet/config.json", None, "unet/config.json is missing"),
        ("unet/diffusion_pytorch_model.safetensors", None, "the component unet has a config and no weights"),
        ("scheduler/scheduler_config.json", None, "names the component scheduler"),
        ("model_index.json", {"custom_pipelines": "acme/evil"}, "custom_pipelines"),
        ("model_index.json", {"_components": {"unet": {}}}, "has the key '_components'"),
        ("unet/config.json", {"_components": {"unet": {}}}, "has the key '_components'"),
    ],
)
def test_what_is_wrong_with_a_pipeline_is_named(
    home: Home, folder: Path, path: str, spoil: dict[str, object] | None, reason: str
) -> None:
    place = folder / path
    if spoil is None:
        place.unlink()
    else:
        place.write_text(json.dumps(json.loads(place.read_text()) | spoil))
    refused = home.run("base", "add", "spoiled", folder)
    assert refused.status == 6 and reason in " ".join(refused.err.split())


def test_a_pipeline_of_a_hub_is_pinned_by_its_headers(home: Home) -> None:
    """The same version as from the folder; no weight file is fetched whole that has a sha256 there."""
    added = home.json("base", "add", "from-hub", "hf://default/sd", "--endpoint", f"{home.server}/hf")
    assert added["version"]["digest"] == home.json("show", "sd")["digest"]


def test_a_pipeline_has_no_vocabulary_to_resize(home: Home) -> None:
    refused = home.run("base", "resize", "sd", "--vocab", "16", "--to", "resized")
    assert refused.status != 0 and "no vocabulary to resize" in refused.err
