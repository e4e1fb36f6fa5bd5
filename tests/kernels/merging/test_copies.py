"""Copies that adapters store beside what they trained: equal ones change nothing, others are refused by name."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lora_contract.errors import RegistryError
from lora_kernels.merging import merge_folder
from tests.support.adapters import base_reader, check_files, codes, fingerprint_of, read_folder
from tests.support.wild import require_wild

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = torch.tensor([[1, 3, 5, 63, 0, 2]])
PREFIX = "base_model.model."


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def merged_as_adapted(base: Path, adapter: Path, out: Path) -> tuple[str, ...]:
    """Compare the logits of the merge with those of the adapted model; PEFT's own merge changes both of two tied layers.
    Return what the merge ignored."""
    report = merge_folder(base, [(adapter, 1.0)], out, min_kept=None)
    load = transformers.LlamaForCausalLM.from_pretrained
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = logits(PeftModel.from_pretrained(load(base), str(adapter)))
    assert (logits(load(out)) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (logits(load(base)) - wanted).abs().max() > 1e-3 * wanted.abs().max()
    return report.ignored


def edited(folder: Path, target: Path, change: Any, **config: Any) -> Path:
    """A copy of an adapter with other tensors and keys of its config."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, target / "adapter_model.safetensors")
    path = target / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return target


def test_copies_of_embeddings_change_nothing(tmp_path: Path) -> None:
    base, adapter = (require_wild("embedding-copies") / name for name in ("base", "adapter"))
    found = check_files(read_folder(adapter), fingerprint_of(base), aliases=["acme/base"], read_base=base_reader(base))
    assert found.findings == [] and found.facts is not None and found.facts.copies == 2
    ignored = merged_as_adapted(base, adapter, tmp_path / "out")
    assert ignored == (f"{PREFIX}lm_head.weight", f"{PREFIX}model.embed_tokens.weight")
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_a_trained_embedding_is_no_copy(tmp_path: Path) -> None:
    base, adapter = (require_wild("embedding-copies") / name for name in ("base", "adapter"))
    name = f"{PREFIX}model.embed_tokens.weight"

    def train(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name] + 0.5

    trained = edited(adapter, tmp_path / "trained", train)
    found = check_files(read_folder(trained), fingerprint_of(base), aliases=["acme/base"], read_base=base_reader(base))
    assert codes(found) == {"overwrites-base"}
    with pytest.raises(RegistryError, match=r"stored as a copy of the base's model\.embed_tokens\.weight") as caught:
        merge_folder(base, [(trained, 1.0)], tmp_path / "out")
    assert caught.value.code == "rejected" and "modules_to_save" in caught.value.hint
    assert not (tmp_path / "out").exists()
    saved = edited(trained, tmp_path / "saved", lambda tensors: None, modules_to_save=["embed_tokens", "lm_head"])
    assert merged_as_adapted(base, saved, tmp_path / "out") == ()


def test_a_resized_vocabulary_is_merged_on_the_resized_base(tmp_path: Path) -> None:
    base, adapter = (require_wild("peft-resized-modules-to-save") / name for name in ("base", "adapter"))
    found = check_files(read_folder(adapter), fingerprint_of(base), aliases=["acme/base"], read_base=base_reader(base))
    assert found.accepted and {finding.code for finding in found.findings} == {"replaces-rows"}
    assert "from row 64 on" in found.findings[0].message
    ignored = merged_as_adapted(base, adapter, tmp_path / "out")
    assert {name.split(".")[-2] for name in ignored} == {"modules_to_save", "original_module"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_resized_vocabulary_on_the_base_of_before_names_the_command() -> None:
    adapter, base = require_wild("peft-resized-modules-to-save") / "adapter", require_wild("embedding-copies") / "base"
    found = check_files(read_folder(adapter), fingerprint_of(base), aliases=["acme/base"], read_base=base_reader(base))
    (finding,) = found.findings
    assert (finding.code, finding.found, finding.expected) == ("vocabulary-rows", "67", "64")
    assert "and so have 3 more tensors" in finding.message
    assert "`lora-reg base resize BASE --vocab 67 --to BASE-67`" in (finding.hint or "")


def test_the_base_beside_a_saved_module_must_be_the_base(tmp_path: Path) -> None:
    folder = require_wild("peft-resized-modules-to-save")
    name = f"{PREFIX}lm_head.original_module.weight"

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][3] += 1

    spoiled = edited(folder / "adapter", tmp_path / "spoiled", spoil)
    read_base = base_reader(folder / "base")
    found = check_files(
        read_folder(spoiled), fingerprint_of(folder / "base"), aliases=["acme/base"], read_base=read_base
    )
    assert codes(found) == {"overwrites-base"}

    def part(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{PREFIX}lm_head.modules_to_save.weight"][3] += 1

    parted = edited(folder / "adapter", tmp_path / "parted", part)
    found = check_files(
        read_folder(parted), fingerprint_of(folder / "base"), aliases=["acme/base"], read_base=read_base
    )
    assert codes(found) == {"copies-differ"}
    with pytest.raises(RegistryError, match="two copies of one saved module"):
        merge_folder(folder / "base", [(parted, 1.0)], tmp_path / "none")
