"""The server alone refuses what is broken, whoever skips the client's checks, and takes what is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.registry.conftest import Sites
from tests.registry.site import SHARED, Site, fingerprint, problem, unique
from tests.support.adapters import make_draft, read_folder, values
from tests.support.push import push, push_folder
from tests.support.testbed import require_testbed

# case of the test bed -> a word of the finding that names the fault
BROKEN = {
    "duplicate-json-keys": "lora_alpha",
    "header-length-8gb": "header",
    "missing-lora-b": "layers.3.self_attn.q_proj",
    "module-not-in-base": "layers.9.self_attn.q_proj",
    "nan-one-tensor": "layers.2.self_attn.q_proj.lora_B",
    "overwrites-base-norm": "layers.3.input_layernorm",
    "pickle-bin": "adapter_model.bin",
    "rank-differs": "16",
    "tar-path-traversal": "adapter.tar",
    "truncated-safetensors": "adapter_model.safetensors",
    "wrong-shape-one-module": "layers.1.self_attn.v_proj",
    "zero-adapter": "zero",
}


@pytest.fixture
def tiny(site: Site) -> Site:
    """The service with the base of the test bed: `bed/tiny`."""
    answer = push_folder(
        site.client, "bed", "tiny", "base", require_testbed() / "base", aliases=["lora-reg-fixture/tiny-llama-4m"]
    )
    assert answer.status_code in (200, 201), answer.text
    return site


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_adapter_is_refused_and_the_fault_named(tiny: Site, case: str) -> None:
    folder, name = require_testbed() / "broken" / case, unique("broken")
    payload = folder / "adapter"
    files = read_folder(payload) if payload.is_dir() else {"adapter.tar": (folder / "adapter.tar").read_bytes()}
    body = problem(push(tiny.client, "bed", name, "adapter", files, base="bed/tiny"), "rejected")
    errors = [finding for finding in body["findings"] if finding["severity"] == "error"]
    assert any(BROKEN[case] in str(finding) for finding in errors), errors
    problem(tiny.client.get(f"/api/v1/repositories/bed/{name}"), "not-found")


def test_the_list_of_broken_adapters_is_whole() -> None:
    cases = {path.name for path in (require_testbed() / "broken").iterdir()}
    assert cases == {*BROKEN, "empty-directory"}


def test_a_push_of_nothing_is_refused(site: Site) -> None:
    problem(push(site.client, "bed", unique("empty"), "adapter", {}, base="bed/tiny"), "rejected")


def test_every_sound_adapter_is_taken(tiny: Site) -> None:
    found = sorted((require_testbed() / "adapters").rglob("adapter_config.json"))
    assert len(found) == 12
    for config in found:
        answer = push_folder(tiny.client, "bed", unique("sound"), "adapter", config.parent, base="bed/tiny")
        assert answer.status_code == 201, (config.parent.name, answer.text)


def _spoilt(fault: str) -> dict[str, bytes]:
    draft = make_draft(fingerprint(), rank=2, seed=5)
    first = next(iter(draft.tensors))
    match fault:
        case "pickle":
            return {"adapter_config.json": draft.files()["adapter_config.json"], "adapter_model.bin": b"\x80\x04."}
        case "base tensor":
            draft.tensors["base_model.model.model.norm.weight"] = values((32,))
        case "half a pair":
            del draft.tensors[first]
        case "cut":
            files = draft.files()
            return {**files, "adapter_model.safetensors": files["adapter_model.safetensors"][:-100]}
        case "no config":
            return {"adapter_model.safetensors": draft.files()["adapter_model.safetensors"]}
        case "not JSON":
            return {**draft.files(), "adapter_config.json": b"{"}
    return draft.files()


@pytest.mark.parametrize("fault", ["pickle", "base tensor", "half a pair", "cut", "no config", "not JSON"])
def test_faults_made_here(site: Site, fault: str) -> None:
    name = unique("spoilt")
    body = problem(push(site.client, "ns", name, "adapter", _spoilt(fault), base=f"{SHARED}/base"), "rejected")
    assert [finding for finding in body["findings"] if finding["severity"] == "error"]
    problem(site.client.get(f"/api/v1/repositories/ns/{name}"), "not-found")


def test_a_file_above_the_limit_and_a_path_outside(sites: Sites, site: Site, tmp_path: Path) -> None:
    upload: dict[str, Any] = {"namespace": "ns", "name": unique("big"), "kind": "adapter"}
    digest = f"sha256:{'0' * 64}"
    for path in ("../up", "/abs", "a//b", "a/../b", "", ".", "a\\b", "con\u0000", "x" * 300):
        answer = site.client.post(
            "/api/v1/uploads", json={**upload, "files": [{"path": path, "size": 1, "digest": digest}]}
        )
        assert answer.status_code in (400, 422), path
