"""Projections that a file names by a seed alone: in float32 the unmerged adapter is the one that is merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from lora_kernels.devices.accelerator import Accelerator  # noqa: E402
from lora_kernels.validating import agreement as layer  # noqa: E402
from lora_kernels.validating import losses, models  # noqa: E402
from tests.support.command import TINY  # noqa: E402

BASE = TINY / "base"
PROBES = [list(range(20, 60))]
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


def drawn(folder: Path, make: Any) -> Path:
    torch.manual_seed(0)
    config = make(r=16, target_modules=["q_proj", "v_proj"], save_projection=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(models.load_base(BASE), config)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lambda_b" in name:
                parameter.normal_()
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.mark.parametrize("make", ["VeraConfig", "PveraConfig"])
def test_a_merge_in_float32_is_the_unmerged_adapter(tmp_path: Path, make: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT rounds them to the type of the weights in memory. A validation holds these in float32, training and serving
    as the checkpoint stores them, in bfloat16."""
    monkeypatch.setitem(layer.FORMS, "float32", layer.FORMS["float32"][:1])
    adapter = drawn(tmp_path / "adapter", getattr(peft, make))
    base = models.load_base(BASE)
    before = losses.probe_logits(base, PROBES)
    after = losses.probe_logits(models.attach(base, adapter), PROBES)
    assert max(float(np.abs(a - b).max()) for a, b in zip(after, before, strict=True)) > 0.1
    found = layer.agreement(BASE, adapter, PROBES, after, lambda _form: None)
    assert found.findings == []
    assert found.facts["forms"]["float32"]["divergence"] < layer.EXACT / 1000


def test_the_projections_are_those_of_a_model_in_the_checkpoints_own_type(tmp_path: Path) -> None:
    import transformers

    adapter = drawn(tmp_path / "adapter", peft.VeraConfig)
    native = transformers.AutoModelForCausalLM.from_pretrained(BASE)
    assert native.dtype == torch.bfloat16
    theirs = peft.PeftModel.from_pretrained(native, adapter).base_model
    ours = models.attach(models.load_base(BASE), adapter).base_model
    for half in ("vera_A", "vera_B"):
        assert torch.equal(getattr(ours, half)["default"], getattr(theirs, half)["default"].float()), half


def test_beside_weights_in_nf4_they_stay_as_they_are_drawn(tmp_path: Path) -> None:
    adapter = drawn(tmp_path / "adapter", peft.VeraConfig)
    ours = models.attach(models.load_base(BASE, "nf4"), adapter).base_model.vera_A["default"]
    assert not torch.equal(ours, ours.bfloat16().float())


def test_merges_that_stay_in_memory_are_those_of_a_folder(tmp_path: Path) -> None:
    """Where there is a GPU, merges stay in its memory; here it is the CPU's, with the reference implementations."""
    adapter = TINY / "adapters" / "queries-v1"
    base = models.load_base(BASE)
    kind = type(base)
    after = losses.probe_logits(models.attach(base, adapter), PROBES)
    by_folder = layer.agreement(BASE, adapter, PROBES, after, lambda _form: None)
    resident = layer.agreement(
        BASE, adapter, PROBES, after, lambda _form: None, kind=kind, accelerator=Accelerator("cpu", "torch")
    )
    assert resident.findings == by_folder.findings == []
    assert resident.facts["forms"].keys() == by_folder.facts["forms"].keys()
    for name, form in by_folder.facts["forms"].items():
        found = resident.facts["forms"][name]
        assert found["divergence"] == pytest.approx(form["divergence"], rel=1e-3, abs=1e-12), name
        assert found["kept"] == pytest.approx(form["kept"], rel=1e-5), name


def test_a_merge_in_memory_that_is_refused_is_reported_like_one_in_a_folder(tmp_path: Path) -> None:
    adapter = tmp_path / "large"
    shutil.copytree(TINY / "adapters" / "queries-v1", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1e30}))
    base = models.load_base(BASE)
    after = losses.probe_logits(base, PROBES)
    found = [
        layer.agreement(BASE, adapter, PROBES, after, lambda _form: None, kind=type(base), accelerator=device)
        for device in (None, Accelerator("cpu", "torch"))
    ]
    for one in found:
        refused = {name: form["refused"] for name, form in one.facts["forms"].items() if "refused" in form}
        assert list(refused) == ["float16"]
        # Which of the tensors is first depends on threads.
        assert refused["float16"].endswith("exceed the range of F16 (largest finite: 65504).")
    assert [finding.code for finding in found[0].findings] == [finding.code for finding in found[1].findings]
