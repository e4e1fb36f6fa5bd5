"""PEFT loads what conversions write, and its update is that of the program that trained the adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lora_contract.modules import modules_of  # noqa: E402
from lora_reg.importing.formats import kohya, mlx  # noqa: E402
from lora_reg.importing.formats.document import Converted  # noqa: E402
from lora_reg.importing.formats.tensors import Tensor, dump  # noqa: E402
from tests.support.adapters import fingerprint_of, make_base  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), dtype="F32")


def tensor(values: Any) -> Tensor:
    return Tensor("F32", tuple(values.shape), values.contiguous().numpy().tobytes())


def merged(base: Path, made: Converted, folder: Path) -> dict[str, Any]:
    """The weights that PEFT makes of base and adapter, and those of the base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(made.config_bytes())
    (folder / "adapter_model.safetensors").write_bytes(dump(made.tensors))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return dict(PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict())


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_mlx_lm(base: Path, tmp_path: Path, kind: str) -> None:
    from safetensors.torch import load_file

    known = modules_of(fingerprint_of(base)).modules
    weights = load_file(base / "model.safetensors")
    source = torch.Generator().manual_seed(1)
    given: dict[str, Tensor] = {}
    wanted = dict(weights)
    for path in ("model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        weight = weights[f"{path}.weight"]
        out, in_ = weight.shape
        a, b = torch.randn(in_, 4, generator=source), torch.randn(4, out, generator=source)
        m = torch.rand(out, generator=source) + 0.5
        given[f"{path}.lora_a"], given[f"{path}.lora_b"] = tensor(a), tensor(b)
        # The formulas of mlx_lm/tuner: `LoRALinear.fuse` and `DoRALinear.fuse`.
        adapted = weight + (0.7 * b.T) @ a.T
        if kind == "dora":
            given[f"{path}.m"] = tensor(m)
            adapted = (m / torch.linalg.norm(adapted, dim=1))[:, None] * adapted
        wanted[f"{path}.weight"] = adapted
    config = {"fine_tune_type": kind, "num_layers": 1, "lora_parameters": {"rank": 4, "scale": 0.7, "dropout": 0.0}}
    found = merged(base, mlx.convert(config, given, known=known, tied=False, base="base"), tmp_path / "adapter")
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def test_kohya(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    known = modules_of(fingerprint_of(base)).modules
    weights = load_file(base / "model.safetensors")
    source = torch.Generator().manual_seed(2)
    given: dict[str, Tensor] = {}
    wanted = dict(weights)
    for path, rank, alpha in (("model.layers.0.self_attn.v_proj", 4, 1.0), ("model.layers.1.mlp.up_proj", 8, 6.0)):
        out, in_ = weights[f"{path}.weight"].shape
        down, up = torch.randn(rank, in_, generator=source), torch.randn(out, rank, generator=source)
        stem = f"lora_te_{path.replace('.', '_')}"
        given |= {f"{stem}.lora_down.weight": tensor(down), f"{stem}.lora_up.weight": tensor(up)}
        given[f"{stem}.alpha"] = tensor(torch.tensor(alpha))
        wanted[f"{path}.weight"] = weights[f"{path}.weight"] + (up @ down) * (alpha / rank)
    made = kohya.convert("text_encoder", given, {}, known=known, layers=None, base="base")
    assert json.loads(made.config_bytes())["alpha_pattern"]
    found = merged(base, made, tmp_path / "adapter")
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
