"""Pipelines and their adapters through the service: added, pushed, imported, merged by a job, pulled and loaded."""

from __future__ import annotations

import copy
from pathlib import Path

from tests.diffusion.conftest import Saved
from tests.support import diffusers
from tests.support.command import Home

NEAR = 1e-6


def fused(sd: Saved, source: str | Path) -> Saved:
    """The pipeline with a LoRA that diffusers loads and fuses."""
    theirs = sd.load()
    theirs.load_lora_weights(str(source))
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    return theirs


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_peft_on_a_pipeline(home: Home, sd: Saved, tmp_path: Path) -> None:
    sd.unet.save_pretrained(tmp_path / "unet-lora")
    home.ok("push", tmp_path / "unet-lora", "style/unet", "--base", "sd")
    assert home.json("show", "style/unet")["facts"]["components"] == {"unet": 41}
    models = {"text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    assert home.json("show", "sd")["facts"]["components"] == models
    home.ok("merge", "style/unet", "--to", "style/merged")
    home.ok("pull", "style/merged", "-o", tmp_path / "merged")
    merged = sd.load(tmp_path / "merged")
    assert diffusers.difference(merged.unet, copy.deepcopy(sd.unet).merge_and_unload()) < NEAR
    assert diffusers.difference(merged.text_encoder, sd.pipeline.text_encoder) == 0
    home.ok("merge", "--local", "--base-dir", sd.folder, tmp_path / "unet-lora", "-o", tmp_path / "local")
    assert files_of(tmp_path / "local") == files_of(tmp_path / "merged")
    prompt = merged.tokenizer("a b c").input_ids
    assert prompt == sd.pipeline.tokenizer("a b c").input_ids


def test_a_file_of_parts_is_one_version(home: Home, sd: Saved, tmp_path: Path) -> None:
    """What diffusers saved becomes one version; its folder is loaded by `load_lora_weights` as it lies."""
    lora = sd.save_lora(tmp_path / "lora")
    done = home.json("import", lora, "--base", "sd", "--to", "style/both")
    assert [row["outcome"] for row in done["rows"]] == ["created"]
    shown = home.json("show", "style/both")
    assert shown["facts"]["components"] == {"text_encoder": 6, "unet": 41}
    home.ok("pull", "style/both", "-o", tmp_path / "pulled")
    wanted = fused(sd, lora)
    ours = fused(sd, tmp_path / "pulled")
    assert diffusers.difference(ours.unet, wanted.unet) == 0
    assert diffusers.difference(ours.text_encoder, wanted.text_encoder) == 0
    home.ok("merge", "style/both", "--to", "style/both-merged")
    home.ok("pull", "style/both-merged", "-o", tmp_path / "merged")
    merged = sd.load(tmp_path / "merged")
    assert diffusers.difference(merged.unet, wanted.unet) < NEAR
    assert diffusers.difference(merged.text_encoder, wanted.text_encoder) < NEAR


def test_what_a_training_script_of_diffusers_leaves(home: Home, sd: Saved, tmp_path: Path) -> None:
    """Checkpoints, logs and pictures beside the file are left out; the card comes along."""
    folder = sd.save_lora(tmp_path / "trained")
    (folder / "README.md").write_text("---\nlibrary_name: diffusers\n---\n")
    for path in ("image_0.png", "logs/dreambooth/events.out.tfevents.1", "checkpoint-5/optimizer.bin"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    sd.save_lora(folder / "checkpoint-5")
    (row,) = home.json("import", folder, "--base", "sd", "--to", "style/trained")["rows"]
    assert row["outcome"] == "created"
    files = {file["path"] for file in home.json("show", "style/trained")["files"]}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def test_a_pulled_folder_is_pushed_again_as_it_is(home: Home, sd: Saved, tmp_path: Path) -> None:
    home.ok("import", sd.save_lora(tmp_path / "lora"), "--base", "sd", "--to", "style/again")
    home.ok("pull", "style/again", "-o", tmp_path / "pulled")
    assert home.json("push", tmp_path / "pulled", "style/again", "--base", "sd")["created"] is False
    config = tmp_path / "pulled" / "adapter_config.json"
    config.chmod(0o644)
    config.write_text(config.read_text().replace('"lora_alpha": 3', '"lora_alpha": 9'))
    refused = home.run("push", tmp_path / "pulled", "style/again", "--base", "sd")
    assert refused.status == 6
    assert "diffusers, which reads lora_adapter_metadata" in " ".join(refused.err.split())


def test_a_file_of_parts_without_a_config_says_what_to_do(home: Home, sd: Saved, tmp_path: Path) -> None:
    refused = home.run("push", sd.save_lora(tmp_path / "lora"), "style/raw", "--base", "sd")
    assert refused.status == 6 and "lora-reg import" in refused.err


def test_kohya_on_the_component_alone(home: Home, sd: Saved, tmp_path: Path) -> None:
    """On a base that is one component, a file becomes what PEFT loads on it."""
    from peft import PeftModel
    from safetensors.torch import save_file

    save_file(diffusers.kohya(sd.unet, "lora_unet_", 1.5), tmp_path / "style.safetensors")
    home.ok("import", tmp_path / "style.safetensors", "--base", "sd-unet", "--to", "style/kohya")
    home.ok("pull", "style/kohya", "-o", tmp_path / "pulled")
    fresh = diffusers.load().UNet2DConditionModel.from_pretrained(sd.folder / "unet")
    wanted = PeftModel.from_pretrained(fresh, tmp_path / "pulled").merge_and_unload()
    home.ok("merge", "style/kohya", "--to", "style/kohya-merged")
    home.ok("pull", "style/kohya-merged", "-o", tmp_path / "merged")
    ours = diffusers.load().UNet2DConditionModel.from_pretrained(tmp_path / "merged")
    assert diffusers.difference(ours, wanted) < NEAR


def test_texts_cannot_validate_such_an_adapter(home: Home, sd: Saved, tmp_path: Path) -> None:
    sd.unet.save_pretrained(tmp_path / "unet-lora")
    home.ok("push", tmp_path / "unet-lora", "style/checked", "--base", "sd")
    for command in (("validate", "style/checked"), ("gate", "style/checked", "--for", "prod")):
        refused = home.run(*command)
        assert refused.status != 0
        assert "a validation measures losses on texts" in " ".join(refused.err.split()), refused.err


def test_clients_of_the_hub_load_pipeline_and_lora(home: Home, sd: Saved, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    home.ok("import", sd.save_lora(tmp_path / "lora"), "--base", "sd", "--to", "style/hub")
    for name in ("default/sd", "acme/tiny-sd"):
        folder = snapshot_download(name, cache_dir=tmp_path / "cache", endpoint=f"{home.server}/hf")
        assert diffusers.difference(sd.load(Path(folder)).unet, sd.pipeline.unet) == 0
    lora = snapshot_download("style/hub", cache_dir=tmp_path / "cache", endpoint=f"{home.server}/hf")
    assert diffusers.difference(fused(sd, lora).unet, fused(sd, tmp_path / "lora").unet) == 0
