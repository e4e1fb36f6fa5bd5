"""Any low-rank adapter as plain LoRA: the same product, whatever an engine ignores; against PEFT's own merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_contract.errors import RegistryError
from lora_kernels.resizing import convert_folder, resize_folder
from tests.kernels.checkpoints import Tensors, exact, matrix, read_raw, write_adapter
from tests.kernels.resizing.test_resize import STEP, UP, K, Q, falling, updates
from tests.support.oracle import merge64
from tests.support.testbed import require_testbed

# peft 0.21.2 asks transformers 5.23 for an attribute that is being renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("uniform", [False, True])
def test_scales_that_are_powers_of_two_change_nothing(tmp_path: Path, dtype: str, uniform: bool) -> None:
    tensors = {
        **falling(Q, out=40, in_=30, r=4, seed=1, dtype=dtype),
        **falling(K, out=10, in_=30, r=16, seed=2, dtype=dtype),
        **falling(UP, out=20, in_=50, r=4, seed=3, dtype=dtype),
    }
    folder = write_adapter(
        tmp_path / "adapter", tensors, r=4, lora_alpha=8, use_rslora=True, rank_pattern={"k_proj": 16},
        alpha_pattern={"up_proj": 1}, target_modules=["q_proj", "k_proj", "up_proj"], lora_dropout=0.1,
    )  # fmt: skip
    report = convert_folder(folder, tmp_path / "out", uniform_rank=uniform)
    assert report.exact and report.relative_error == 0 and report.rank == 16
    assert {told.module: told.scale for told in report.modules} == {Q: 4.0, K: 2.0, UP: 0.5}
    stored = {name: exact(*value) for name, value in read_raw(folder / "adapter_model.safetensors").items()}
    written = read_raw(tmp_path / "out" / "adapter_model.safetensors")
    for told in report.modules:
        # Factor by factor: the order in which a product is summed may differ with its inner dimension.
        for half, scale in (("A", 1.0), ("B", told.scale)):
            name = f"base_model.model.{told.module}.lora_{half}.weight"
            before, after = scale * stored[name], exact(*written[name])
            kept = after[: before.shape[0], : before.shape[1]]
            np.testing.assert_array_equal(kept, before)
            assert np.count_nonzero(after) == np.count_nonzero(kept)
    ranks = {value.shape[0] for name, (_, value) in written.items() if "lora_A" in name}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert ranks == ({16} if uniform else {4, 16}) and {kind for kind, _ in written.values()} == {dtype}
    assert config["r"] == config["lora_alpha"] and not config["use_rslora"]
    assert len(config["rank_pattern"]) == (0 if uniform else 2) and config["rank_pattern"] == config["alpha_pattern"]


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_other_scales_cost_one_rounding(tmp_path: Path, dtype: str | None) -> None:
    tensors = falling(Q, out=40, in_=30, r=8, seed=1, dtype="BF16")
    folder = write_adapter(tmp_path / "adapter", tensors, r=8, lora_alpha=24, use_rslora=True)
    report = convert_folder(folder, tmp_path / "out", dtype=dtype)
    stored = {name: exact(*value) for name, value in read_raw(folder / "adapter_model.safetensors").items()}
    written = {name: exact(*value) for name, value in read_raw(tmp_path / "out" / "adapter_model.safetensors").items()}
    step = STEP["BF16"] if dtype is None else STEP["F32"]
    a, b = (f"base_model.model.{Q}.lora_{half}.weight" for half in "AB")
    scaled = 24 / 8**0.5 * stored[b]
    np.testing.assert_array_equal(written[a], stored[a])
    assert (np.abs(written[b] - scaled) <= step * np.abs(scaled)).all()
    rest = np.linalg.norm(written[b] @ written[a] - scaled @ stored[a]) / np.linalg.norm(scaled @ stored[a])
    assert not report.exact and report.relative_error == pytest.approx(rest, rel=1e-6)
    assert 0 < report.relative_error < (2.0**-8 if dtype is None else 2.0**-23)


def test_padding_to_one_rank_is_right_even_where_patterns_are_ignored(tmp_path: Path) -> None:
    """An engine that reads r and lora_alpha alone, and allots r rows to every module."""
    tensors = {**falling(Q, out=40, in_=30, r=3, seed=1), **falling(K, out=10, in_=30, r=5, seed=2)}
    folder = write_adapter(
        tmp_path / "adapter", tensors, r=3, lora_alpha=3, rank_pattern={"k_proj": 5}, alpha_pattern={"k_proj": 10},
        target_modules=["q_proj", "k_proj"],
    )  # fmt: skip
    convert_folder(folder, tmp_path / "out", uniform_rank=True)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    stored = {n: exact(*v) for n, v in read_raw(tmp_path / "out" / "adapter_model.safetensors").items()}
    before = {name: exact(*value) for name, value in read_raw(folder / "adapter_model.safetensors").items()}
    assert config["rank_pattern"] == {} and config["alpha_pattern"] == {}
    for module, scale in ((Q, 1.0), (K, 2.0)):
        slots = np.zeros((config["r"], 30)), np.zeros((40 if module == Q else 10, config["r"]))
        for slot, half in zip(slots, "AB", strict=True):
            values = stored[f"base_model.model.{module}.lora_{half}.weight"]
            slot[: values.shape[0], : values.shape[1]] = values
        served = config["lora_alpha"] / config["r"] * slots[1] @ slots[0]
        a, b = (before[f"base_model.model.{module}.lora_{half}.weight"] for half in "AB")
        np.testing.assert_allclose(served, scale * b @ a, rtol=1e-14)


def adalora(folder: Path) -> Path:
    tensors: Tensors = {
        f"{Q}.lora_A": ("F32", matrix(3, 30, seed=1)),
        f"{Q}.lora_B": ("F32", matrix(40, 3, seed=2)),
        f"{Q}.lora_E": ("F32", matrix(3, 1, seed=3)),
        f"{K}.lora_A": ("F32", np.zeros((0, 30))),
        f"{K}.lora_B": ("F32", np.zeros((10, 0))),
        f"{K}.lora_E": ("F32", np.zeros((0, 1))),
    }
    kept = {f"{Q}.lora_E": [True, False, True, True], f"{K}.lora_E": [False] * 4}
    return write_adapter(
        folder, tensors, peft_type="ADALORA", r=2, init_r=4, target_r=2, lora_alpha=16, rank_pattern=kept,
        target_modules=["q_proj", "k_proj"], total_step=10,
    )  # fmt: skip


def test_adalora_becomes_lora_and_modules_without_any_rank_are_told(tmp_path: Path) -> None:
    folder = adalora(tmp_path / "adapter")
    report = convert_folder(folder, tmp_path / "out")
    stored = {name: exact(*value) for name, value in read_raw(folder / "adapter_model.safetensors").items()}
    a, b, e = (stored[f"base_model.model.{Q}.lora_{part}"] for part in "ABE")
    want = 16 / (4 + 1e-5) * b @ (a * e)
    got = updates(tmp_path / "out")[Q]
    assert np.linalg.norm(got - want) <= 3 * STEP["F32"] * np.linalg.norm(np.abs(b) @ np.abs(a * e)) * 4
    assert report.dropped == (K,) and list(updates(tmp_path / "out")) == [Q]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["target_modules"]) == ("LORA", 3, [Q])
    assert not {"init_r", "target_r", "total_step"} & config.keys()


def test_inits_that_change_the_base_say_the_way_out(tmp_path: Path) -> None:
    for init in ("pissa", "pissa_niter_4", "olora"):
        tensors = falling(Q, out=40, in_=30, r=4, seed=1)
        folder = write_adapter(tmp_path / init, tensors, init_lora_weights=init)
        with pytest.raises(RegistryError, match=init) as caught:
            convert_folder(folder, tmp_path / "out")
        assert caught.value.code == "unsupported" and "path_initial_model_for_weight_conversion" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["lora-patterns-python", "rslora-r16-cheader", "lora-embed-prose", "lora-lmhead-cheader"]
)
def test_trained_adapters_keep_their_update(tmp_path: Path, name: str) -> None:
    bed = require_testbed()
    convert_folder(bed / "adapters" / name, tmp_path / "out", dtype="float32")
    want, got = (merge64(bed / "base", folder) for folder in (bed / "adapters" / name, tmp_path / "out"))
    assert set(want) == set(got)
    for tensor, merged in want.items():
        error = np.abs(got[tensor].exact - merged.exact)
        assert (error <= merged.float32_error).all(), tensor


def test_peft_loads_the_results_with_the_same_logits(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    bed = require_testbed()
    source = bed / "adapters" / "lora-patterns-python"
    convert_folder(source, tmp_path / "plain", dtype="float32")
    convert_folder(source, tmp_path / "padded", uniform_rank=True, dtype="float32")
    resize_folder(source, tmp_path / "same", keep_energy=1.0, dtype="float32")
    resize_folder(source, tmp_path / "small", rank=2)
    tokens = torch.arange(4, 68)[None]

    def logits(folder: Path | None) -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(bed / "base", dtype=torch.float32)
        if folder is not None:
            model = peft.PeftModel.from_pretrained(model, folder)
        with torch.no_grad():
            return model.eval()(tokens).logits

    want, plain = logits(source), logits(None)
    for name in ("plain", "padded", "same"):
        assert (logits(tmp_path / name) - want).norm() < 1e-5 * want.norm(), name
    effect = (want - plain).norm()
    assert 1e-3 * effect < (logits(tmp_path / "small") - want).norm() < effect


def tiny(peft_type: str, folder: Path, **config: Any) -> tuple[Any, Any]:
    """A random model and its adapter of a type, trained values and all, saved to `folder`."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    model = torch.nn.Sequential()
    model.add_module("q_proj", torch.nn.Linear(24, 32, bias=False))
    model.add_module("k_proj", torch.nn.Linear(32, 20, bias=False))
    base = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = peft.get_peft_model(model, getattr(peft, peft_type)(target_modules=["q_proj", "k_proj"], **config))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape))
    adapted.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "auto_mapping": None}))
    merged = adapted.merge_and_unload().state_dict()
    return base, {name: (merged[name] - base[name]).double().numpy() for name in base}


@pytest.mark.parametrize(
    ("peft_type", "config", "ranks"),
    [
        ("LoHaConfig", {"r": 3, "alpha": 5, "rank_pattern": {"k_proj": 2}}, {"q_proj": 9, "k_proj": 4}),
        ("LoKrConfig", {"r": 2, "alpha": 3}, None),
        ("LoKrConfig", {"r": 1, "alpha": 3, "decompose_both": True, "decompose_factor": 4}, None),
        ("LoKrConfig", {"r": 64, "alpha": 16}, None),
        ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_rslora": True, "alpha_pattern": {"k_proj": 1}}, None),
        ("AdaLoraConfig", {"init_r": 4, "target_r": 2, "lora_alpha": 6, "total_step": 10}, None),
    ],
)
def test_other_types_of_peft_keep_their_update(
    tmp_path: Path, peft_type: str, config: dict[str, Any], ranks: dict[str, int] | None
) -> None:
    base, want = tiny(peft_type, tmp_path / "adapter", **config)
    report = convert_folder(tmp_path / "adapter", tmp_path / "out", dtype="float32")
    got = updates(tmp_path / "out")
    if ranks is not None:
        assert {told.module: told.rank for told in report.modules} == ranks
    for module, update in got.items():
        expected = want[f"{module}.weight"]
        size = np.abs(base[f"{module}.weight"].double().numpy()) + np.abs(expected)
        # PEFT's own merge and its difference from the base are float32: a handful of roundings of weight and update.
        assert np.abs(update - expected).max() <= 8 * STEP["F32"] * float(size.max()), module
    assert set(got) == {"q_proj", "k_proj"}
    smaller = resize_folder(tmp_path / "adapter", tmp_path / "small", rank=1, dtype="float32")
    for told in smaller.modules:
        singular = np.linalg.svd(got[told.module], compute_uv=False)
        assert told.relative_error == pytest.approx(
            float(np.sqrt(np.sum(singular[1:] ** 2) / np.sum(singular**2))), abs=1e-6
        )
