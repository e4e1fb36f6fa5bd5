"""Bases with another number of tokens: rows appended or cut, everything else as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lora_contract.errors import RegistryError
from lora_contract.tensors import read_header
from lora_contract.vocabulary import given_rows
from lora_kernels.checkpoint.folders import read_base
from lora_kernels.resizing import resize_vocabulary_folder
from tests.kernels.checkpoints import read_model
from tests.support.adapters import make_base, read_folder, reader

pytestmark = pytest.mark.filterwarnings("ignore")

E, H = "model.embed_tokens.weight", "lm_head.weight"


def weights(folder: Path) -> dict[str, Any]:
    return {name: raw for name, (_, raw) in read_model(folder).items()}


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(("tied", "vocabulary"), [(False, 99), (True, 99), (False, 90)])
def test_rows_are_appended_or_cut(tmp_path: Path, shards: int, tied: bool, vocabulary: int) -> None:
    base = make_base(tmp_path / "base", tied=tied, shards=shards)
    (base / "tokenizer.json").write_text("{}")
    report = resize_vocabulary_folder(base, tmp_path / "out", vocabulary=vocabulary)
    layers = (E,) if tied else (H, E)
    assert (report.before, report.after, report.tensors, report.given) == (96, vocabulary, layers, ())
    before, after = weights(base), weights(tmp_path / "out")
    assert set(before) == set(after)
    for name, values in after.items():
        if name not in layers:
            assert np.array_equal(values, before[name])
            continue
        kept = min(vocabulary, 96)
        assert values.shape[0] == vocabulary and np.array_equal(values[:kept], before[name][:kept])
        wide = torch.from_numpy(before[name].astype(np.int32) << 16).view(torch.float32).double()
        mean = wide.mean(0).float().bfloat16().view(torch.int16).numpy().astype(np.uint16)
        assert all(np.array_equal(row, mean) for row in values[kept:])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {**json.loads((base / "config.json").read_text()), "vocab_size": vocabulary}
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    if shards > 1:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(values.nbytes for values in after.values())
    resize_vocabulary_folder(base, tmp_path / "again", vocabulary=vocabulary)
    assert read_folder(tmp_path / "again") == read_folder(tmp_path / "out")
    assert (
        transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").get_input_embeddings().num_embeddings
        == vocabulary
    )


def rows_of(file: Path, base: Path, vocabulary: int) -> Any:
    data = file.read_bytes()
    read = reader({file.name: data})
    return list(given_rows(read_header(read, file.name, len(data)), read, file.name, read_base(base)[0], vocabulary))


def test_rows_are_taken_from_a_file(tmp_path: Path) -> None:
    base, file = make_base(tmp_path / "base"), tmp_path / "rows.safetensors"
    whole, new = torch.randn(98, 32), torch.randn(2, 32).bfloat16()
    names = {
        f"base_model.model.{E.removesuffix('.weight')}.original_module.weight": whole,
        f"base_model.model.{E}": torch.zeros(98, 32),
        H: new,
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32),
    }
    save_file(names, file)
    report = resize_vocabulary_folder(base, tmp_path / "out", vocabulary=98, rows=rows_of(file, base, 98))
    assert report.given == (H, E)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(tensors[E][96:], whole[96:].bfloat16()) and torch.equal(tensors[H][96:], new)
    for wrong, message in (({"score.weight": whole}, "has no rows for"), ({H: torch.zeros(5, 32)}, "expected 98 rows")):
        save_file(wrong, file)
        with pytest.raises(RegistryError, match=message):
            rows_of(file, base, 98)


def test_what_is_not_a_resize_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    for vocabulary in (96, 0):
        with pytest.raises(RegistryError, match="is not one") as caught:
            resize_vocabulary_folder(base, tmp_path / "out", vocabulary=vocabulary)
        assert caught.value.code == "invalid-request"
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    )
    model.save_pretrained(tmp_path / "vision")
    with pytest.raises(RegistryError, match="input embedding") as caught:
        resize_vocabulary_folder(tmp_path / "vision", tmp_path / "out", vocabulary=10)
    assert caught.value.code == "unsupported"
    assert not (tmp_path / "out").exists()
