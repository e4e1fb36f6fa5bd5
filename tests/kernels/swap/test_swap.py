"""Swaps of really trained adapters give, bit for bit, what a fresh merge gives, whatever was resident before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_contract.errors import RegistryError
from lora_kernels import ops
from lora_kernels.swap import InstalledAdapter, Keep, Prepared, ResidentModel, SwapAdapter
from tests.kernels.checkpoints import matrix, pair, write_adapter, write_base
from tests.kernels.swap.models import Weights, differing, merged, weights_of
from tests.support.testbed import require_testbed

# LoRA, rsLoRA, patterns, DoRA, IA3, embeddings, a saved output layer: by kernels, by other operations, by the host.
ADAPTERS = (
    "lora-r8-qv-python",
    "dora-r8-sql",
    "rslora-r16-cheader",
    "ia3-sql",
    "lora-embed-prose",
    "lora-patterns-python",
    "lora-lmhead-cheader",
    "lora-r16-alllinear-prose",
)
# Each of them after each kind, twice the same, and back.
ORDER = (0, 1, 0, 2, 2, 3, 4, 1, 5, 6, 4, 7, 3, 6, 0)
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def bed() -> Path:
    return require_testbed()


@pytest.fixture(scope="module")
def fresh(bed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    folder = tmp_path_factory.mktemp("fresh")
    return {name: merged(bed / "base", [(bed / "adapters" / name, 1.0)], folder / name) for name in ADAPTERS}


@pytest.mark.parametrize("keep", ["files", "host", "device"])
def test_any_order_gives_fresh_merges(bed: Path, fresh: dict[str, Weights], keep: Keep) -> None:
    weights = weights_of(bed / "base")
    with ResidentModel(bed / "base", weights, keep=keep) as model:
        bare = model.installed
        assert bare is not None and bare.adapters == ()
        prepared: dict[str, Prepared] = {}
        for index in ORDER:
            name = ADAPTERS[index]
            if name not in prepared:
                prepared[name] = model.prepare([bed / "adapters" / name])
            assert model.swap(prepared[name]) == model.installed == prepared[name].installed
            assert differing(weights, fresh[name]) == [], name
        digests = {one.installed.digest for one in prepared.values()}
        assert len(digests) == len(ADAPTERS) and bare.digest not in digests
        assert model.restore() == bare == model.installed
        assert differing(weights, weights_of(bed / "base")) == []
        kept = sum(weights[name].nbytes for name in weights if not name.endswith("norm.weight"))
        ia3 = prepared["ia3-sql"]
    held = {"files": (0, 0), "host": (kept, 0), "device": (0, kept)}[keep]
    assert model.memory == held
    results = sum(result.values.nbytes for result in ia3.results)
    assert ia3.updates == () and ia3.memory == ((0, results) if keep == "device" else (results, 0))


def test_kernels_of_low_rank_updates_are_launched_together(
    bed: Path, fresh: dict[str, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = weights_of(bed / "base")
    calls: list[int] = []
    grouped = ops.merge_low_rank_grouped
    with ResidentModel(bed / "base", weights) as model:
        prepared = model.prepare([bed / "adapters" / "lora-r16-alllinear-prose"])
        monkeypatch.setattr(
            ops, "merge_low_rank_grouped", lambda jobs, **_: (calls.append(len(jobs)), grouped(jobs))[1]
        )
        model.swap(prepared)
    assert calls == [28] and prepared.results == ()
    assert differing(weights, fresh["lora-r16-alllinear-prose"]) == []
    assert prepared.report.kept is not None and len(prepared.report.tensors) == 28


def test_several_adapters_at_once_with_weights(bed: Path, tmp_path: Path) -> None:
    both = [(bed / "adapters" / "lora-r8-qv-python", 0.5), (bed / "adapters" / "rslora-r16-cheader", -0.25)]
    weights = weights_of(bed / "base")
    with ResidentModel(bed / "base", weights, base_digest="sha256:" + "1" * 64) as model:
        model.swap(model.prepare([SwapAdapter(bed / "adapters" / "ia3-sql")]))
        named = [SwapAdapter(folder, weight, digest=f"sha256:{weight}") for folder, weight in both]
        found = model.swap(model.prepare(named))
    assert (found.base, found.backend) == ("sha256:" + "1" * 64, "torch")
    assert found.adapters == (InstalledAdapter("sha256:0.5", 0.5), InstalledAdapter("sha256:-0.25", -0.25))
    assert differing(weights, merged(bed / "base", both, tmp_path / "out")) == []


@pytest.mark.parametrize("keep", ["files", "device"])
def test_a_model_in_another_dtype_is_merged_from_the_files(bed: Path, tmp_path: Path, keep: Keep) -> None:
    """Rounded once: the base's values in the files are added to, not the model's."""
    for name, dtype in (("float32", torch.float32), ("float16", torch.float16)):
        weights = weights_of(bed / "base", dtype)
        with ResidentModel(bed / "base", weights, keep=keep) as model:
            for adapter in ("dora-r8-sql", "lora-r8-qv-python"):
                assert model.swap(model.prepare([bed / "adapters" / adapter])).dtype == name
            out = tmp_path / name
            expected = merged(bed / "base", [(bed / "adapters" / "lora-r8-qv-python", 1.0)], out, dtype=name)
            assert differing(weights, expected) == []
            model.restore()
        assert differing(weights, weights_of(bed / "base", dtype)) == []


def test_stochastic_rounding_is_part_of_what_is_resident(bed: Path, tmp_path: Path) -> None:
    adapter = bed / "adapters" / "lora-r8-qv-python"
    weights = weights_of(bed / "base")
    with ResidentModel(bed / "base", weights) as model:
        nearest = model.prepare([adapter])
        found = model.swap(model.prepare([adapter], rounding="stochastic", seed=7))
    assert (found.rounding, found.seed) == ("stochastic", 7) and found.digest != nearest.installed.digest
    expected = merged(bed / "base", [(adapter, 1.0)], tmp_path / "out", rounding="stochastic", seed=7)
    assert differing(weights, expected) == []


BROKEN = ("wrong-shape-one-module", "module-not-in-base", "missing-lora-b", "nan-one-tensor", "overwrites-base-norm")


@pytest.mark.parametrize("case", BROKEN)
def test_an_adapter_that_does_not_fit_changes_nothing(bed: Path, fresh: dict[str, Weights], case: str) -> None:
    weights = weights_of(bed / "base")
    with ResidentModel(bed / "base", weights) as model:
        before = model.swap(model.prepare([bed / "adapters" / "lora-r8-qv-python"]))
        with pytest.raises(RegistryError) as caught:
            model.prepare([bed / "broken" / case / "adapter"])
        assert "model." in caught.value.detail
        assert model.installed == before
    assert differing(weights, fresh["lora-r8-qv-python"]) == []


def test_a_swap_that_fails_in_the_middle_is_known_and_restorable(
    bed: Path, fresh: dict[str, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = weights_of(bed / "base")
    grouped = ops.merge_low_rank_grouped

    def half(jobs: Any, **options: Any) -> Any:
        grouped(jobs[: len(jobs) // 2], **options)
        raise KeyboardInterrupt

    with ResidentModel(bed / "base", weights, keep="host") as model:
        first = model.prepare([bed / "adapters" / "ia3-sql"])
        second = model.prepare([bed / "adapters" / "rslora-r16-cheader"])
        for recover in (first, second, None):
            model.swap(first)
            monkeypatch.setattr(ops, "merge_low_rank_grouped", half)
            with pytest.raises(KeyboardInterrupt):
                model.swap(second)
            monkeypatch.setattr(ops, "merge_low_rank_grouped", grouped)
            assert model.installed is None
            found = model.restore() if recover is None else model.swap(recover)
            assert model.installed == found
            expected = {first: fresh["ia3-sql"], second: fresh["rslora-r16-cheader"]}.get(recover)  # type: ignore[arg-type]
            assert differing(weights, expected or weights_of(bed / "base")) == []


def test_another_base_is_refused_by_name(bed: Path, tmp_path: Path) -> None:
    base = bed / "base"

    def refused(weights: Weights, *said: str, code: str = "base-mismatch", folder: Path = base) -> None:
        with pytest.raises(RegistryError) as caught:
            ResidentModel(folder, weights)
        assert caught.value.code == code
        assert all(part in caught.value.detail for part in said), caught.value.detail

    weights = weights_of(base)
    weights[f"{Q}.weight"].view(torch.int16)[3, 5] ^= 1  # one bit
    refused(weights, f"{Q}.weight", "values")
    refused(weights_of(base) | {f"{Q}.weight": torch.zeros(8, 8)}, f"{Q}.weight", "(8, 8)")
    refused({"h.0.weight": torch.zeros(3)}, "LlamaForCausalLM", "h.0.weight")
    refused(weights_of(base) | {f"{Q}.weight": torch.zeros(8, dtype=torch.uint8)}, f"{Q}.weight", code="unsupported")
    refused(weights_of(base) | {f"{Q}.weight": weights[f"{Q}.weight"].T}, "not contiguous", code="unsupported")
    refused(weights_of(base) | {f"{Q}.weight": weights[f"{Q}.weight"].to("meta")}, "meta", code="unsupported")
    mixed = weights_of(base, torch.float32) | {f"{Q}.weight": weights[f"{Q}.weight"].half()}
    refused(mixed, f"{Q}.weight", "F16", code="unsupported")
    with pytest.raises(RegistryError, match="expected one of files, host, device"):
        ResidentModel(base, weights_of(base), keep="disk")  # type: ignore[arg-type]


def test_wrong_swaps_are_refused(bed: Path, tmp_path: Path) -> None:
    shutil.copytree(bed / "base", tmp_path / "base")
    adapter = bed / "adapters" / "lora-r8-qv-python"
    weights = weights_of(bed / "base")
    v = "model.layers.0.self_attn.v_proj.weight"
    with ResidentModel(bed / "base", weights_of(bed / "base")) as other:
        foreign = other.prepare([adapter])
    with ResidentModel(tmp_path / "base", {name: value for name, value in weights.items() if name != v}) as model:
        before = model.installed
        with pytest.raises(RegistryError, match=v):
            model.prepare([adapter])
        with pytest.raises(RegistryError, match="pinned to the base sha256:0"):
            model.prepare([SwapAdapter(adapter, base="sha256:0")])
        with pytest.raises(RegistryError, match="another model"):
            model.swap(foreign)
        with pytest.raises(RegistryError, match="at least one"):
            model.prepare([])
        file = tmp_path / "base" / "model-00001-of-00002.safetensors"
        file.write_bytes(file.read_bytes())
        with pytest.raises(RegistryError, match=r"model-00001-of-00002.safetensors .* has changed"):
            model.prepare([bed / "adapters" / "ia3-sql"])
        assert model.installed == before
    assert differing(weights, weights_of(bed / "base")) == []


def test_an_update_that_rounding_discards_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("BF16", 1 + matrix(16, 8, seed=1))}], dtype="bfloat16")
    tiny = write_adapter(tmp_path / "tiny", pair(Q, out=16, in_=8, r=4, seed=2, size=1e-3))
    with ResidentModel(base, weights_of(base)) as model:
        with pytest.raises(RegistryError, match="survived the rounding"):
            model.prepare([tiny])
        assert model.prepare([tiny], min_kept=None).report.kept is not None
