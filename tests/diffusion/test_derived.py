"""Adapters derived from such adapters are again what `load_lora_weights` and PEFT load."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.folders import read_base
from lora_kernels.composing import compose_folders
from lora_kernels.extracting import extract_folders
from lora_kernels.merging import merge_folder
from lora_kernels.resizing import resize_folder
from tests.diffusion.conftest import Saved
from tests.diffusion.test_merging import converted
from tests.diffusion.test_registry import fused
from tests.support import diffusers
from tests.support.adapters import check_files, read_folder


@pytest.fixture(scope="module")
def both(sd: Saved, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    return converted(sd, sd.save_lora(folder / "lora") / "pytorch_lora_weights.safetensors", folder / "adapter")


def check(sd: Saved, adapter: Path, merged: Path, near: float) -> None:
    """What diffusers fuses from the folder is what a merge of it gives."""
    found = check_files(read_folder(adapter), read_base(sd.folder)[0], accept_base=True)
    assert found.accepted, found.findings
    merge_folder(sd.folder, [(adapter, 1.0)], merged, min_kept=None)
    ours, theirs = sd.load(merged), fused(sd, adapter)
    assert diffusers.difference(ours.unet, theirs.unet) < near
    assert diffusers.difference(ours.text_encoder, theirs.text_encoder) < near


def test_composed_and_resized(sd: Saved, both: Path, tmp_path: Path) -> None:
    compose_folders([(both, 0.5), (both, 0.25)], tmp_path / "composed", method="cat")
    check(sd, tmp_path / "composed", tmp_path / "merged", 1e-5)
    resize_folder(tmp_path / "composed", tmp_path / "resized", rank=4)
    check(sd, tmp_path / "resized", tmp_path / "again", 1e-5)
    wanted = fused(sd, both)
    for component in ("unet", "text_encoder"):
        merged, base = getattr(sd.load(tmp_path / "again"), component), getattr(sd.pipeline, component)
        full = getattr(wanted, component).state_dict()
        for name, value in merged.state_dict().items():
            start = base.state_dict()[name]
            assert float((start + 0.75 * (full[name] - start) - value).abs().max()) < 1e-4


def test_extracted_from_a_pipeline(sd: Saved, both: Path, tmp_path: Path) -> None:
    merge_folder(sd.folder, [(both, 1.0)], tmp_path / "tuned", min_kept=None)
    targets = ["to_q", "to_v", "q_proj", "v_proj", "fc1"]
    extract_folders(tmp_path / "tuned", sd.folder, tmp_path / "extracted", rank=4, targets=targets)
    check(sd, tmp_path / "extracted", tmp_path / "merged", 1e-5)
    tuned = sd.load(tmp_path / "tuned").text_encoder
    assert diffusers.difference(sd.load(tmp_path / "merged").text_encoder, tuned) < 1e-4
    with pytest.raises(RegistryError, match="hold factors alone"):
        extract_folders(tmp_path / "tuned", sd.folder, tmp_path / "whole", rank=4, save_changed=True)


def test_kinds_are_not_mixed(sd: Saved, both: Path, tmp_path: Path) -> None:
    copy.deepcopy(sd.unet).save_pretrained(tmp_path / "unet")
    with pytest.raises(RegistryError, match="others are of one component"):
        compose_folders([(both, 1.0), (tmp_path / "unet", 1.0)], tmp_path / "mixed", method="cat")
