"""Tiny pipelines of diffusers, one of each kind for all tests, and a service that has them as bases."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import diffusers, service
from tests.support.command import Home

UNET_TARGETS = ("to_q", "to_v", "to_out.0", "conv1", "proj_in", "conv_shortcut")
TEXT_TARGETS = ("q_proj", "v_proj", "fc1")


@pytest.fixture(autouse=True, scope="package")
def quiet() -> Iterator[None]:
    import transformers

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    diffusers.load().utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    transformers.utils.logging.enable_progress_bar()
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Saved:
    """A pipeline, its folder, and adapted copies of its U-Net and its first text encoder."""

    folder: Path
    pipeline: Any
    unet: Any
    text: Any

    def load(self, folder: Path | None = None) -> Any:
        return type(self.pipeline).from_pretrained(folder or self.folder)

    def save_lora(self, folder: Path) -> Path:
        """What diffusers' training scripts save: both parts in one file."""
        type(self.pipeline).save_lora_weights(
            folder,
            unet_lora_layers=diffusers.factors(self.unet),
            text_encoder_lora_layers=diffusers.factors(self.text),
            unet_lora_adapter_metadata=self.unet.peft_config["default"].to_dict(),
            text_encoder_lora_adapter_metadata=self.text.peft_config["default"].to_dict(),
        )
        return folder


@pytest.fixture(scope="package")
def sd(quiet: None, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    work = tmp_path_factory.mktemp("sd")
    made = diffusers.stable_diffusion(work / "base", work)
    return Saved(
        work / "base",
        made,
        diffusers.adapted(copy.deepcopy(made.unet), UNET_TARGETS, rank_pattern={"conv1": 3}, alpha_pattern={"to_q": 5}),
        diffusers.adapted(copy.deepcopy(made.text_encoder), TEXT_TARGETS, seed=8, lora_alpha=7, r=4),
    )


@pytest.fixture(scope="package")
def home(sd: Saved, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A client of a service with a worker, which has the pipeline and its U-Net as bases."""
    folder = tmp_path_factory.mktemp("service")
    with service.in_process(folder / "data") as running, service.worker(running, folder / "worker.log"):
        home = Home(folder / "home", running.url)
        home.ok("base", "add", "sd", sd.folder, "--alias", "acme/tiny-sd")
        home.ok("base", "add", "sd-unet", sd.folder / "unet")
        yield home
