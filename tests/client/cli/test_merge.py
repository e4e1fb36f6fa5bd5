"""merge --local by the command line: the plan, the threads, what does not go together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import TINY, Home

BASE = TINY / "base"
QUERIES = TINY / "adapters" / "queries-v1"


@pytest.fixture
def alone(tmp_path: Path) -> Home:
    """A machine without any registry."""
    return Home(tmp_path / "home", "http://127.0.0.1:9")


def test_a_dry_run_shows_the_plan_and_writes_nothing(alone: Home, tmp_path: Path) -> None:
    said = alone.ok("merge", "--local", "--base-dir", BASE, f"{QUERIES}=0.5", "--dry-run", "--dtype", "float32")
    lines = said.out.splitlines()
    assert lines[0].split() == ["SIZE", "TENSORS", "CHANGED", "FILE"]
    assert any(line.endswith("  model.layers.0.self_attn.q_proj.weight") for line in lines)
    assert "adapter 1: LORA, weight 0.5" in lines
    assert lines[-1].endswith("nothing was written")
    plan = alone.json("merge", "--local", "--base-dir", BASE, f"{QUERIES}=0.5", "--dry-run")
    assert plan["schema"] == "lora-reg/merge-plan/1"
    tensors = {tensor["name"]: tensor for shard in plan["plan"]["shards"] for tensor in shard["tensors"]}
    touched = tensors["model.layers.0.self_attn.q_proj.weight"]
    assert [delta["adapter"] for delta in touched["deltas"]] == [0]
    assert tensors["model.embed_tokens.weight"]["deltas"] == []
    quiet = alone.ok("merge", "--local", "--base-dir", BASE, QUERIES, "--dry-run", "-q").out.splitlines()
    assert sorted(quiet) == sorted(name for name, tensor in tensors.items() if tensor["deltas"])
    assert not tmp_path.joinpath("out").exists()


def test_the_plan_is_what_is_done(alone: Home, tmp_path: Path) -> None:
    plan = alone.json("merge", "--local", "--base-dir", BASE, QUERIES, "--dry-run")["plan"]
    made = alone.json("merge", "--local", "--base-dir", BASE, QUERIES, "-o", tmp_path / "out", "--threads", "2")
    assert {file["path"]: file["size"] for file in made["report"]["files"]} == {
        shard["file"]: shard["size"] for shard in plan["shards"]
    }
    for shard in plan["shards"]:
        data = (tmp_path / "out" / shard["file"]).read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        assert {tensor["name"]: [tensor["start"], tensor["end"]] for tensor in shard["tensors"]} == {
            name: [8 + length + offset for offset in entry["data_offsets"]]
            for name, entry in header.items()
            if name != "__metadata__"
        }


def test_the_device_is_in_the_plan_and_in_the_report(alone: Home, tmp_path: Path) -> None:
    """Without a GPU: `auto` says why it takes the CPU. What a GPU gives is tested in tests/kernels."""
    merge = ("merge", "--local", "--base-dir", BASE, QUERIES)
    planned = alone.json(*merge, "--dry-run", "--device", "auto")["execution"]
    made = alone.json(*merge, "--device", "auto", "-o", tmp_path / "out")["report"]["execution"]
    assert planned == made and planned["device"] in ("cpu", "cuda")
    assert "libcuda" in planned["reason"] or "predicted" in planned["reason"] or "driver" in planned["reason"]
    lines = alone.ok(*merge, "--dry-run", "--device", "auto").out.splitlines()
    assert lines[-2] == f"device: {planned['device']}, by numpy; {planned['reason']}"
    assert alone.json(*merge, "--dry-run")["execution"]["reason"] == "requested"


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused_before_anything_is_written(alone: Home, tmp_path: Path) -> None:
    for further in (("--dry-run",), ("-o", tmp_path / "out")):
        said = alone.run("merge", "--local", "--base-dir", BASE, QUERIES, "--device", "cuda", *further)
        assert said.status == 6
        assert "The device `cuda` was requested, and" in said.err and "hint: Use --device cpu" in said.err
    assert list(tmp_path.glob("*out*")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a/b", "--to", "a/c", "--dry-run"], "--dry-run cannot be used with a merge by a job"),
        (["a/b", "--to", "a/c", "--threads", "2"], "--threads cannot be used with a merge by a job"),
        (["a/b", "--local", "--dry-run"], "--local needs --base-dir"),
        (["a/b", "--local", "--base-dir", str(BASE)], "--local needs -o DIR"),
        (["a/b", "--local", "--base-dir", str(BASE), "-o", "x", "--threads", "0"], "--threads"),
    ],
)
def test_what_does_not_go_together(alone: Home, arguments: list[str], said: str) -> None:
    refused = alone.run("merge", *arguments)
    assert refused.status == 2, refused.err
    assert said in refused.err
