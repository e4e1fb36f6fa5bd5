"""Writing adapters: canonical bytes, and folders that PEFT loads with the update that was meant."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lora_contract.errors import RegistryError
from lora_kernels.adapters import AdapterIdentity, LowRankModule, adapter_writer, open_adapter, write_adapter
from tests.kernels.checkpoints import matrix, read_raw
from tests.support.adapters import BASE_ID, check_files, fingerprint_of, make_base, read_folder

LAYER = "model.layers.{}.self_attn.{}"
IDENTITY = AdapterIdentity(base_model=BASE_ID, task_type="CAUSAL_LM")


def linear(module: str, r: int, *, out: int = 32, in_: int = 32, scale: float = 1.0, seed: int = 0) -> LowRankModule:
    a, b = matrix(r, in_, seed=seed), matrix(out, r, seed=seed + 1)
    return LowRankModule(module, "linear", a.astype(np.float32), b.astype(np.float32), scale)


def modules() -> list[LowRankModule]:
    return [
        linear(LAYER.format(0, "q_proj"), 4, scale=-0.5),
        linear(LAYER.format(0, "v_proj"), 2, out=16, seed=3),
        linear(LAYER.format(1, "q_proj"), 6, seed=5),
    ]


def test_modules_come_back_with_scale_one(tmp_path: Path) -> None:
    assert write_adapter(tmp_path / "a", IDENTITY, modules(), dtype="F32") == {
        module.module: module.rank for module in modules()
    }
    with open_adapter(tmp_path / "a") as reader:
        assert reader.config.base_model == BASE_ID and reader.config.task_type == "CAUSAL_LM"
        for module in modules():
            found = reader.load(module.module)
            assert found.scale == 1.0
            np.testing.assert_array_equal(found.a, module.a)
            np.testing.assert_array_equal(found.b, module.b * np.float32(module.scale))


def test_same_modules_give_the_same_bytes_and_a_canonical_config(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_adapter(tmp_path / name, IDENTITY, modules(), dtype="BF16")
    assert read_folder(tmp_path / "a") == read_folder(tmp_path / "b")
    text = (tmp_path / "a" / "adapter_config.json").read_text()
    config = json.loads(text)
    assert text == json.dumps(config, indent=2, sort_keys=True) + "\n"
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["use_dora"]) == (6, 6, False, False)
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert sorted(config["rank_pattern"].values()) == [2, 4]
    assert config["target_modules"] == sorted(module.module for module in modules())


def test_the_registry_accepts_what_was_written(tmp_path: Path) -> None:
    base = fingerprint_of(make_base(tmp_path / "base"))
    write_adapter(tmp_path / "a", IDENTITY, modules(), dtype="BF16")
    result = check_files(read_folder(tmp_path / "a"), base)
    assert result.findings == [], result.findings


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_peft_loads_every_module_with_its_update(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    write_adapter(tmp_path / "a", IDENTITY, modules(), dtype=dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(make_base(tmp_path / "base"), dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "a")
    layers = {
        path.removeprefix("base_model.model."): layer
        for path, layer in adapted.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    assert set(layers) == {module.module for module in modules()}
    unit = {"F32": 2.0**-24, "BF16": 2.0**-8, "F16": 2.0**-11}[dtype]
    for module in modules():
        exact = module.scale * (module.b.astype(np.float64) @ module.a.astype(np.float64))
        room = abs(module.scale) * (np.abs(module.b).astype(np.float64) @ np.abs(module.a))
        got = layers[module.module].get_delta_weight("default").double().numpy()
        # Both factors rounded once, then PEFT's product and scale in float32; 2^-24 covers halves that underflow.
        assert (np.abs(got - exact) <= (2.1 * unit + (module.rank + 2) * 2.0**-24) * room + 2.0**-24).all()


def test_rank_zero_is_left_out_and_nothing_left_is_an_error(tmp_path: Path) -> None:
    empty = linear("model.layers.1.self_attn.k_proj", 0, out=16)
    assert empty.module not in write_adapter(tmp_path / "a", IDENTITY, [*modules(), empty], dtype="F32")
    with pytest.raises(RegistryError, match="The result has no module") as caught:
        write_adapter(tmp_path / "b", IDENTITY, [empty], dtype="F32")
    assert caught.value.code == "rejected" and not (tmp_path / "b").exists()


def test_overflow_of_the_dtype_names_the_tensor_and_leaves_nothing(tmp_path: Path) -> None:
    big = LowRankModule(LAYER.format(0, "q_proj"), "linear", np.ones((1, 4), np.float32), np.full((4, 1), 7e4, "f4"))
    with pytest.raises(RegistryError, match=r"q_proj\.lora_B\.weight .* F16") as caught:
        write_adapter(tmp_path / "a", IDENTITY, [big], dtype="F16")
    assert caught.value.code == "rejected" and list(tmp_path.iterdir()) == []
    huge = LowRankModule(big.module, "linear", big.a, np.full((4, 1), 3.4028e38, "f4"))
    with pytest.raises(RegistryError, match=r"lora_B\.weight .* BF16"):
        write_adapter(tmp_path / "a", IDENTITY, [huge], dtype="BF16")
    write_adapter(tmp_path / "a", IDENTITY, [huge], dtype="F32")


def test_an_error_midway_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), adapter_writer(tmp_path / "a", IDENTITY, dtype="F32") as writer:
        writer.add(modules()[0])
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_extras_stand_behind_the_factors(tmp_path: Path) -> None:
    head = matrix(5, 3, seed=1).astype("<f4")
    extra = ("base_model.model.lm_head.weight", "F32", (5, 3), head.tobytes())
    identity = AdapterIdentity(modules_to_save=("lm_head",))
    write_adapter(tmp_path / "a", identity, modules(), dtype="BF16", extras=[extra])
    stored = read_raw(tmp_path / "a" / "adapter_model.safetensors")
    assert list(stored)[-1] == extra[0]
    np.testing.assert_array_equal(stored[extra[0]][1], head)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["modules_to_save"] == ["lm_head"]


def test_pattern_keys_mean_one_path_alone(tmp_path: Path) -> None:
    """Also where one path is the end of another, or holds a character that a pattern would take for an operator."""
    paths = {"q": 2, "a.q": 3, "axq": 5, "b.a.q": 7, "c[1].q+": 4}
    parts = [linear(path, rank, out=8, in_=8) for path, rank in sorted(paths.items())]
    write_adapter(tmp_path / "a", IDENTITY, parts, dtype="F32")
    with open_adapter(tmp_path / "a") as reader:
        assert {path: reader.load(path).rank for path in reader.modules} == paths
        assert {reader.load(path).scale for path in reader.modules} == {1.0}
