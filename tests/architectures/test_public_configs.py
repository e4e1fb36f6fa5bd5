"""A share of the configs of public adapters, made into adapters by PEFT: all are run by `public_configs`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architectures.public_configs import locally
from tests.support.wild import require_wild

pytestmark = pytest.mark.filterwarnings("ignore")

# Heads of two tasks, a rank per module, a pattern, embeddings among the targets, an encoder-decoder, a U-Net of diffusers,
# and the refused.
SHARE = {
    "adalora-bert-tiny.json": "equal logits",
    "lora-roberta-base.json": "equal logits",
    "lora-bert-base-uncased.json": "equal logits",
    "lora-gemma-3-4b-it.json": "equal logits",
    "lora-elyza-japanese-llama-2-7b-instruct.json": "equal logits",
    "lora-mt0-large.json": "equal logits",
    "lora-none-6.json": "equal logits",
    "prefix-tuning-flan-t5-xl.json": "merge refused: ",
    "none-none.json": "refused: adapter_config.json is a config of mlx-lm",
}


@pytest.mark.parametrize("name", SHARE)
def test_an_adapter_of_a_public_config_is_merged(tmp_path: Path, name: str) -> None:
    assert locally(require_wild("configs") / name, tmp_path).startswith(SHARE[name])
