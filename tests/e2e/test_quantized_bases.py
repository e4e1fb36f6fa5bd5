"""A quantized base through the registry, as the Hub holds it: added, pinned by an adapter, merged by a job, pulled."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_kernels.merging import merge_folder
from tests.kernels.checkpoints import pair, write_adapter
from tests.support import service
from tests.support.adapters import read_folder
from tests.support.command import Home
from tests.support.quantizing import quantized_checkpoints

Q = "model.layers.0.self_attn.q_proj"
BESIDE = {
    "gptq-4-desc_act": ("quantize_config.json",),
    "awq": ("quant_config.json",),
    "pack-4-group": ("recipe.yaml",),
    "fp8-block": ("inference/convert.py",),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("quantized")
    with service.in_process(folder / "data") as running, service.worker(running, folder / "worker.log"):
        yield Home(folder / "home", running.url)


@pytest.mark.parametrize("case", BESIDE)
def test_a_quantized_base_is_added_and_merged(case: str, home: Home, tmp_path: Path) -> None:
    base = Path(shutil.copytree(quantized_checkpoints() / case, tmp_path / "base"))
    shutil.rmtree(base / "expected")
    for name in BESIDE[case]:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("{}")
    name = case.replace("_", "-")
    added = home.run("base", "add", f"quantized/{name}", base, "--alias", f"hub/{name}")
    assert added.status == 0, added.err
    adapter = write_adapter(tmp_path / "adapter", pair(Q, out=64, in_=64, r=4, seed=1, size=0.05))
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"target_modules": Q, "base_model_name_or_path": f"hub/{name}"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    pushed = home.run("push", adapter, f"acme/{name}", "--base", f"quantized/{name}")
    assert pushed.status == 0, pushed.err
    merged = home.run("merge", f"acme/{name}", "--to", f"acme/{name}-merged")
    assert merged.status == 0, merged.err
    assert "dequantized: 14 weights of " in merged.out and "float16" in merged.out
    facts = home.run("show", f"acme/{name}-merged", "--json").document["facts"]
    assert facts["dequantized"].startswith("14 weights of ")
    assert home.run("pull", f"acme/{name}-merged", "-o", tmp_path / "pulled").status == 0
    planned = home.run("merge", "--local", "--base-dir", base, adapter, "-o", tmp_path / "x", "--dry-run")
    assert planned.status == 0 and re.search(rf"(gptq|awq|fp8|compressed-tensors).* to \w+ +{Q}\.weight", planned.out)
    here = home.run("merge", "--local", "--base-dir", base, adapter, "-o", tmp_path / "here")
    assert here.status == 0 and f"dequantized: {facts['dequantized']}" in here.out
    report = merge_folder(base, [(adapter, 1.0)], tmp_path / "local")
    assert report.dequantized == facts["dequantized"]
    pulled, local = read_folder(tmp_path / "pulled"), read_folder(tmp_path / "local")
    assert pulled["model.safetensors"] == local["model.safetensors"]
    assert "quantization_config" not in json.loads(pulled["config.json"])
    assert not {"quantize_config.json", "quant_config.json"} & pulled.keys()
