"""Merging into checkpoints that bitsandbytes wrote: what is read is what bitsandbytes reads, and damage is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_contract.errors import RegistryError
from lora_kernels.merging import merge_folder
from tests.kernels.checkpoints import write_base
from tests.kernels.merging import bnb_models as models

pytest.importorskip("bitsandbytes")
pytest.importorskip("transformers")

KINDS: dict[str, dict[str, Any]] = {
    "nf4": {},
    "nf4-double": {"bnb_4bit_use_double_quant": True},
    "fp4-double": {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "nf4-as-bf16": {"bnb_4bit_quant_storage": torch.bfloat16},
    "int8": {"load_in_8bit": True},
}
WEIGHT = f"{models.Q}.weight"


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.make_llama(tmp_path_factory.mktemp("llama") / "full")


@pytest.fixture(scope="session")
def quantized(llama: Path) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        folder = llama.parent / kind
        return folder if folder.exists() else models.quantize(llama, folder, **KINDS[kind])

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_dequantized_weights_are_those_of_bitsandbytes(
    kind: str, quantized: Callable[[str], Path], tmp_path: Path
) -> None:
    """With a weight of zero nothing is added: every bit of every layer must be what bitsandbytes gives."""
    base = quantized(kind)
    adapter = models.adapter(tmp_path / "adapter")
    stored = models.read(base)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        merge_folder(base, [(adapter, 0.0)], tmp_path / name, dtype=name)
        result, expected = models.read(tmp_path / name), models.dequantized(stored, dtype)
        assert len(expected) == 14
        assert all(torch.equal(result[weight], expected[weight]) for weight in expected)
        assert set(result) == {key for key in stored if key.endswith(".weight")}


@pytest.mark.parametrize("kind", ["nf4-double", "fp4-double", "int8"])
def test_merged_weights_are_float32_sums(kind: str, quantized: Callable[[str], Path], tmp_path: Path) -> None:
    base = quantized(kind)
    report = merge_folder(base, [(models.adapter(tmp_path / "adapter"), 1.0)], tmp_path / "out", dtype="float32")
    result, before = models.read(tmp_path / "out"), models.dequantized(models.read(base))
    for module in (models.Q, models.DOWN):
        weight, delta = before[f"{module}.weight"].double().numpy(), models.change(module)
        a, b = (np.abs(models.ADAPTER[f"{module}.lora_{half}.weight"][1]) for half in "AB")
        # Four products, three sums, the scale; then the sum with the weight.
        bound = 2.0**-24 * (8 * 2 * b @ a + 2 * np.abs(weight + delta))
        assert (np.abs(result[f"{module}.weight"].double().numpy() - (weight + delta)) <= bound).all()
    assert report.kept == pytest.approx(1, abs=1e-5)
    assert [tensor.name for tensor in report.tensors] == sorted(
        f"{module}.weight" for module in (models.Q, models.DOWN)
    )


@pytest.mark.parametrize("kind", ["nf4-double", "int8"])
def test_the_result_is_a_plain_model_that_transformers_loads(
    kind: str, quantized: Callable[[str], Path], tmp_path: Path
) -> None:
    merge_folder(quantized(kind), [(models.adapter(tmp_path / "adapter"), 1.0)], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "bfloat16"
    model, result = models.load(tmp_path / "out"), models.read(tmp_path / "out")
    state = model.state_dict()
    assert set(state) == set(result) and all(torch.equal(state[name], result[name]) for name in result)
    assert {value.dtype for value in result.values()} == {torch.bfloat16}
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


def test_blocks_that_straddle_rows_and_index(llama: Path, tmp_path: Path) -> None:
    """Rows of 96, and the weights in several files, the scales in another than the codes."""
    full = models.make_llama(tmp_path / "full", inner=96, dtype=torch.float32)
    base = models.quantize(full, tmp_path / "base", dtype=torch.float32, bnb_4bit_use_double_quant=True)
    tensors = models.read(base)
    (base / "model.safetensors").unlink()
    parts = {
        "model-00001-of-00002.safetensors": {k: v for k, v in tensors.items() if ".weight." in k},
        "model-00002-of-00002.safetensors": {k: v for k, v in tensors.items() if ".weight." not in k},
    }
    from safetensors.torch import save_file

    for file, values in parts.items():
        save_file(values, base / file, {"format": "pt"})
    weight_map = {name: file for file, values in parts.items() for name in values}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    small = {**models.ADAPTER, **models.pair(models.DOWN, out=64, in_=96, r=4, seed=3)}
    merge_folder(base, [(models.adapter(tmp_path / "adapter", small), 0.0)], tmp_path / "out")
    result, expected = models.read(tmp_path / "out"), models.dequantized(tensors)
    assert all(torch.equal(result[name], expected[name]) for name in expected)
    written = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(written["weight_map"]) == set(result)
    assert written["metadata"]["total_size"] == sum(v.numel() * v.element_size() for v in result.values())
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == set(written["weight_map"].values())


def _state(key: str, value: Any) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name, state = models.state_of(tensors, WEIGHT)
        tensors[name] = models.as_json({**state, key: value})

    return change


def _drop(suffix: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[WEIGHT + suffix]

    return change


def _replace(suffix: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        assert suffix in ("", ".second") or WEIGHT + suffix in tensors
        tensors[WEIGHT + suffix] = value

    return change


STATE = ".quant_state.bitsandbytes__nf4"
DAMAGE: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "no absmax": (_drop(".absmax"), r"has no \S+\.absmax"),
    "no quant_map": (_drop(".quant_map"), r"has no \S+\.quant_map"),
    "no nested_absmax": (_drop(".nested_absmax"), r"has no \S+\.nested_absmax"),
    "no nested_quant_map": (_drop(".nested_quant_map"), r"has no \S+\.nested_quant_map"),
    "no quant_state": (_drop(STATE), "has U8 codes, but no quant_state"),
    "short absmax": (_replace(".absmax", torch.zeros(63, dtype=torch.uint8)), "63 numbers"),
    "absmax of another type": (_replace(".absmax", torch.zeros(64)), "expected U8"),
    "long nested_absmax": (_replace(".nested_absmax", torch.zeros(2)), "2 numbers"),
    "other numbers": (_replace(".quant_map", torch.zeros(16)), "not the codebook of nf4"),
    "short codes": (_replace("", torch.zeros(2047, 1, dtype=torch.uint8)), "2047 bytes of codes"),
    "no JSON": (_replace(STATE, torch.zeros(40, dtype=torch.uint8)), "JSON"),
    "a list": (_replace(STATE, torch.tensor(list(b"[1]"), dtype=torch.uint8)), "JSON object"),
    "a long state": (_replace(STATE, torch.full((5000,), 32, dtype=torch.uint8)), "5000 bytes"),
    "another scheme": (_state("quant_type", "fp4"), "quant_state of nf4 with quant_type"),
    "larger shape": (_state("shape", [64, 128]), "bytes of codes"),
    "endless shape": (_state("shape", [1 << 40, 1 << 40]), "shape"),
    "negative shape": (_state("shape", [-64, -64]), "shape"),
    "shape of bools": (_state("shape", [True, 4096]), "shape"),
    "no shape": (_state("shape", None), "shape"),
    "blocks of seven": (_state("blocksize", 7), "the blocksize 7"),
    "larger blocks": (_state("blocksize", 128), "numbers in"),
    "unknown type": (_state("dtype", "complex64"), "complex64"),
    "type of the offset": (_state("nested_offset", "0"), "nested_offset"),
    "endless offset": (_state("nested_offset", 1e300), "nested_offset"),
    "type of the scales": (_state("nested_dtype", "float16"), "nested_dtype"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_groups_are_refused(damage: str, quantized: Callable[[str], Path], tmp_path: Path) -> None:
    change, sentence = DAMAGE[damage]
    base = Path(shutil.copytree(quantized("nf4-double"), tmp_path / "base"))
    tensors = models.read(base)
    change(tensors)
    models.rewrite(base, tensors)
    with pytest.raises(RegistryError, match=sentence) as caught:
        merge_folder(base, [(models.adapter(tmp_path / "adapter"), 1.0)], tmp_path / "out")
    assert caught.value.code == "rejected" and WEIGHT in caught.value.detail
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("SCB", None, "has I8 codes, but no SCB"),
        ("SCB", torch.ones(63), "63 numbers"),
        ("SCB", torch.ones(64, dtype=torch.float16), "expected F32"),
        ("weight_format", torch.tensor(1, dtype=torch.uint8), "row by row"),
        ("weight", torch.zeros(64, 64), "not an I8 matrix"),
    ],
)
def test_damaged_int8_is_refused(
    key: str, value: torch.Tensor | None, sentence: str, quantized: Callable[[str], Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(quantized("int8"), tmp_path / "base"))
    tensors = models.read(base)
    if value is None:
        del tensors[f"{models.Q}.{key}"]
    else:
        tensors[f"{models.Q}.{key}"] = value
    models.rewrite(base, tensors)
    with pytest.raises(RegistryError, match=sentence) as caught:
        merge_folder(base, [(models.adapter(tmp_path / "adapter"), 1.0)], tmp_path / "out")
    assert caught.value.code == "rejected" and not (tmp_path / "out").exists()


def test_a_scale_without_a_state_is_refused(tmp_path: Path) -> None:
    """Also where nothing else says that the base is quantized."""
    codes = {f"{WEIGHT}": ("U8", np.zeros((8, 1), np.uint8)), f"{WEIGHT}.absmax": ("F32", np.zeros(1, np.float32))}
    base = write_base(tmp_path / "base", [codes])
    with pytest.raises(RegistryError, match="absmax, but no quant_state") as caught:
        merge_folder(base, [(models.adapter(tmp_path / "adapter"), 1.0)], tmp_path / "out")
    assert caught.value.code == "rejected"


def test_a_file_cut_short_is_refused(quantized: Callable[[str], Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(quantized("nf4-double"), tmp_path / "base"))
    data = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(RegistryError):
        merge_folder(base, [(models.adapter(tmp_path / "adapter"), 1.0)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
