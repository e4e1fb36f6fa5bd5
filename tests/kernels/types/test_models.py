"""Whole models: what transformers loads from a merge says the same as PEFT's model with the adapter on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from lora_kernels.merging import merge_folder  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CAUSAL = {"task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores its linear layers (in, out), with biases, and ties its head."""
    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=101, n_positions=32, n_embd=48, n_layer=2, n_head=3)
    folder = tmp_path_factory.mktemp("gpt2")
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has biases on q, k and v alone."""
    torch.manual_seed(2)
    config = transformers.Qwen2Config(
        vocab_size=101,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("qwen2")
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


CONV1D = {
    "adalora": lambda: peft.AdaLoraConfig(init_r=4, total_step=100, target_modules=["c_attn", "c_fc"], **CAUSAL),
    "ia3": lambda: peft.IA3Config(target_modules=["c_attn", "c_fc"], feedforward_modules=["c_fc"], **CAUSAL),
    "vera": lambda: peft.VeraConfig(r=12, target_modules=["c_attn", "c_fc"], save_projection=False, **CAUSAL),
    "hira": lambda: peft.HiraConfig(r=4, target_modules=["c_attn", "c_proj"], **CAUSAL),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=50, target_modules=["c_attn"], **CAUSAL),
    "gralora": lambda: peft.GraloraConfig(r=4, gralora_k=2, target_modules=["c_attn"], **CAUSAL),
    "vblora": lambda: peft.VBLoRAConfig(num_vectors=20, vector_length=8, target_modules=["c_attn"], **CAUSAL),
    "ln_tuning": lambda: peft.LNTuningConfig(target_modules=["ln_1", "ln_f"], **CAUSAL),
    "deft": lambda: peft.DeftConfig(r=3, target_modules=["c_fc"], **CAUSAL),
}
LINEAR = {
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=["q_proj", "down_proj"], **CAUSAL),
    "lokr": lambda: peft.LoKrConfig(r=2, target_modules="all-linear", **CAUSAL),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=8, target_modules=["q_proj", "up_proj"], **CAUSAL),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj", "up_proj"], **CAUSAL),
    "hra": lambda: peft.HRAConfig(r=4, target_modules=["q_proj", "o_proj"], **CAUSAL),
    "road": lambda: peft.RoadConfig(group_size=8, target_modules=["q_proj", "up_proj"], **CAUSAL),
    "miss": lambda: peft.MissConfig(r=8, target_modules=["q_proj", "o_proj"], **CAUSAL),
    "beft": lambda: peft.BeftConfig(target_modules=["v_proj"], **CAUSAL),
    "glora": lambda: peft.GloraConfig(r=3, config_C="none", target_modules=["q_proj", "o_proj"], **CAUSAL),
    "trainable_tokens": lambda: peft.TrainableTokensConfig(token_indices=[3, 7], target_modules=["embed_tokens"], **CAUSAL),
}  # fmt: skip


@pytest.mark.parametrize("name", CONV1D)
def test_gpt2(gpt2: Path, tmp_path: Path, name: str) -> None:
    _compare(gpt2, CONV1D[name], tmp_path)


@pytest.mark.parametrize("name", LINEAR)
def test_qwen2(qwen2: Path, tmp_path: Path, name: str) -> None:
    _compare(qwen2, LINEAR[name], tmp_path)


def _compare(base: Path, config: Any, folder: Path) -> None:
    def load(path: Path) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    torch.manual_seed(3)
    model = peft.get_peft_model(load(base), config())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    merge_folder(base, [(folder / "adapter", 1.0)], folder / "out", min_kept=None)
    tokens = torch.arange(96).reshape(4, 24) % 101
    with torch.no_grad():
        plain = load(base)(tokens).logits.numpy()
        want = peft.PeftModel.from_pretrained(load(base), folder / "adapter").eval()(tokens).logits.numpy()
        got = load(folder / "out")(tokens).logits.numpy()
    assert np.abs(want - plain).max() > 1e-3
    # Float32 through two layers, merged and not.
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * np.abs(want).max())
