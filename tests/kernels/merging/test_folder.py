"""Folders in, a folder out: what is carried over, when it appears, how much memory it takes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.folders import read_adapter, read_base
from lora_kernels.checkpoint.staging import staged_folder
from lora_kernels.merging import merge_folder, plan_merge
from tests.kernels.checkpoints import Tensors, matrix, pair, write_adapter, write_base, write_safetensors

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    first: Tensors = {
        f"{Q}.weight": ("BF16", matrix(700, 300, seed=1)),
        "model.norm.weight": ("F32", matrix(9, seed=2)),
    }
    folder = write_base(
        tmp_path / "base", [first, {"lm_head.weight": ("BF16", matrix(50, 300, seed=3))}], dtype="bfloat16"
    )
    (folder / "tokenizer.json").write_text("{}")
    (folder / "LICENSE").write_text("free")
    (folder / "README.md").write_text("the base")
    (folder / "pytorch_model.bin").write_bytes(b"no weights of ours")
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", pair(Q, out=700, in_=300, r=4, seed=4))


def test_files_of_the_result(base: Path, adapter: Path, tmp_path: Path) -> None:
    report = merge_folder(base, [(adapter, 1.0)], tmp_path / "deep" / "out", dtype="float32", digests=True)
    out = tmp_path / "deep" / "out"
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*shards, "LICENSE", "config.json", "model.safetensors.index.json", "tokenizer.json"]
    )
    assert [(file.path, file.size, file.sha256) for file in report.files] == [
        (name, (out / name).stat().st_size, hashlib.sha256((out / name).read_bytes()).hexdigest()) for name in shards
    ]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 4 * (700 * 300 + 9 + 50 * 300)},
        "weight_map": {f"{Q}.weight": shards[0], "model.norm.weight": shards[0], "lm_head.weight": shards[1]},
    }
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_config_stays_byte_for_byte_without_a_dtype(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_older_configs_keep_their_key(tmp_path: Path, adapter: Path) -> None:
    folder = write_base(tmp_path / "old", [{f"{Q}.weight": ("BF16", matrix(700, 300, seed=1))}], torch_dtype="bfloat16")
    merge_folder(folder, [(adapter, 1.0)], tmp_path / "out", dtype="float16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "float16" and "dtype" not in config
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_progress_ends_at_the_size_of_the_plan(base: Path, adapter: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = merge_folder(base, [(adapter, 1.0)], tmp_path / "out", threads=1, progress=lambda *at: seen.append(at))
    total = sum(file.size for file in report.files)
    assert seen[-1] == (total, total) and [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert total == plan_merge(read_base(base)[0], [read_adapter(adapter)]).size


def test_what_is_there_already_is_not_touched(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(RegistryError) as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "exists"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    merge_folder(base, [(adapter, 1.0)], tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()


def test_missing_and_damaged_bases_are_named(base: Path, adapter: Path, tmp_path: Path) -> None:
    shard = base / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    for expected in ("5 bytes are missing", shard.name):
        with pytest.raises(RegistryError, match=expected):
            merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
        shard.unlink(missing_ok=True)
    write_safetensors(shard, {"other.weight": ("BF16", matrix(3, 3, seed=1))})
    with pytest.raises(RegistryError, match="other"):
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_disk_that_is_too_small_is_found_before_the_work(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A base of 8 TB on paper: a sparse file, which no disk of a test machine could hold merged."""
    name = "model.huge.weight"
    header = json.dumps({name: {"dtype": "BF16", "shape": [1 << 21, 1 << 21], "data_offsets": [0, 1 << 43]}}).encode()
    huge = base / "model-00003.safetensors"
    huge.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(huge, 8 + len(header) + (1 << 43))
    index = json.loads((base / "model.safetensors.index.json").read_text())
    index["weight_map"][name] = huge.name
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RegistryError, match="disk is full") as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "storage-unavailable" and not (tmp_path / "out").exists()


def test_same_bytes_with_any_number_of_threads_and_any_hash_seed(base: Path, adapter: Path, tmp_path: Path) -> None:
    # Rank 64: large enough for OpenBLAS to split the product over its threads, where it is let, and round differently.
    second = write_adapter(tmp_path / "second", pair(Q, out=700, in_=300, r=64, seed=9), r=64, lora_alpha=64)
    script = (
        "import sys; from lora_kernels.merging import merge_folder;"
        "r = merge_folder(sys.argv[1], [(sys.argv[2], 0.7), (sys.argv[3], -0.2)], sys.argv[4], threads=int(sys.argv[5]), dtype='float32');"
        "import msgspec; print(msgspec.json.encode(r).decode())"
    )
    outputs = set()
    for number, (blas, workers, seed) in enumerate(
        [("1", "1", "0"), ("2", "2", "1"), ("2", "1", "2"), ("1", "2", "3")]
    ):
        out = tmp_path / f"out{number}"
        done = subprocess.run(
            [sys.executable, "-c", script, str(base), str(adapter), str(second), str(out), workers],
            env={**os.environ, "OPENBLAS_NUM_THREADS": blas, "OMP_NUM_THREADS": blas, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        )
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}
        outputs.add(done.stdout + json.dumps(files))
    assert len(outputs) == 1


def sparse_base(folder: Path, *, layers: int, hidden: int, rows: int) -> None:
    """A base of zeros that takes no room on the disk: one sparse file per layer, of `rows` x hidden and two projections."""
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False})
    )
    weight_map = {}
    for layer in range(layers):
        shapes = {
            "mlp.up_proj": (rows, hidden),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.v_proj": (hidden, hidden),
        }
        header: dict[str, Any] = {}
        position = 0
        for module, shape in shapes.items():
            name = f"model.layers.{layer}.{module}.weight"
            size = 2 * shape[0] * shape[1]
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + size]}
            position += size
            weight_map[name] = f"layer-{layer}.safetensors"
        encoded = json.dumps(header).encode()
        path = folder / f"layer-{layer}.safetensors"
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded)
        os.truncate(path, 8 + len(encoded) + position)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def qv_adapter(folder: Path, *, layers: int, hidden: int, r: int) -> Path:
    tensors: dict[str, Any] = {}
    for layer in range(layers):
        for module in ("q_proj", "v_proj"):
            tensors |= pair(
                f"model.layers.{layer}.self_attn.{module}", out=hidden, in_=hidden, r=r, seed=layer, dtype="BF16"
            )
    return write_adapter(folder, tensors, r=r)


def test_memory_stays_small_whatever_the_size(tmp_path: Path) -> None:
    """1 GB of weights, one tensor of 400 MB among them, against the peak memory after loading numpy alone."""
    sparse_base(tmp_path / "base", layers=2, hidden=4096, rows=49152)
    size = sum(path.stat().st_size for path in (tmp_path / "base").iterdir())
    assert size > 900_000_000
    adapter = qv_adapter(tmp_path / "adapter", layers=2, hidden=4096, r=16)
    # VmHWM and not ru_maxrss, which a child inherits from the process that started it.
    script = (
        "import re, sys, numpy; from lora_kernels.merging import merge_folder, stream\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]) / 1024\n"
        "before = peak(); merge_folder(sys.argv[1], [(sys.argv[2], 1.0)], sys.argv[3], threads=2); print(before, peak())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "base"), str(adapter), str(tmp_path / "out")],
        check=True,
        capture_output=True,
        text=True,
    )
    before, after = map(float, done.stdout.split())
    print(f"{before:.0f} MB before, {after:.0f} MB at most")
    assert after - before < 50
    assert after < 100
    sizes = [sum(path.stat().st_size for path in (tmp_path / name).glob("*.safetensors")) for name in ("base", "out")]
    assert abs(sizes[0] - sizes[1]) < 1000
    shutil.rmtree(tmp_path / "out")  # pytest would keep the gigabyte for three runs


def test_killed_in_the_middle_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    sparse_base(tmp_path / "base", layers=2, hidden=2048, rows=16384)
    adapter = qv_adapter(tmp_path / "adapter", layers=2, hidden=2048, r=16)
    script = (
        "import sys, time; from lora_kernels.merging import merge_folder\n"
        "def progress(done, total):\n"
        "    if done > total // 2:\n"
        "        print('half', flush=True); time.sleep(60)\n"
        "merge_folder(sys.argv[1], [(sys.argv[2], 1.0)], sys.argv[3], threads=1, progress=progress)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "base"), str(adapter), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"half\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob(".out.*.partial"))) == 1
    merge_folder(tmp_path / "base", [(adapter, 1.0)], tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()
    assert list(tmp_path.glob(".*")) == []


def test_another_merge_at_work_is_left_alone(base: Path, adapter: Path, tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out", needed=0) as first:
        (first / "mine").write_text("mine")
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
        assert (first / "mine").read_text() == "mine"
        with pytest.raises(RegistryError, match="already exists"):
            merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_slower_of_two_merges_into_one_folder_loses(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError) as caught, staged_folder(tmp_path / "out", needed=0) as first:
        (first / "mine").write_text("mine")
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "exists"
    assert (tmp_path / "out" / "config.json").exists() and not (tmp_path / "out" / "mine").exists()
    assert list(tmp_path.glob(".*")) == []


def test_interrupted_leaves_nothing_at_all(base: Path, adapter: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out", progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_first_failure_stops_the_other_files(tmp_path: Path) -> None:
    """A broken update in the small last file ends the work on the large first one."""
    tensors: Tensors = {f"{Q}.weight": ("F16", np.full((8, 8), 65504.0))}
    folder = write_base(
        tmp_path / "base", [{"model.large.weight": ("BF16", np.zeros((8192, 8192), np.uint16))}, tensors]
    )
    broken = write_adapter(
        tmp_path / "adapter",
        {f"{Q}.lora_A.weight": ("F32", np.full((4, 8), 100.0)), f"{Q}.lora_B.weight": ("F32", np.full((8, 4), 100.0))},
    )
    seen: list[int] = []

    def slowly(done: int, total: int) -> None:
        seen.append(done)
        time.sleep(0.01)

    with pytest.raises(RegistryError, match="exceed the range of F16"):
        merge_folder(folder, [(broken, 1.0)], tmp_path / "out", threads=2, progress=slowly)
    assert seen[-1] < 50_000_000
    assert not (tmp_path / "out").exists()


def test_same_bytes_and_report_however_the_work_is_shared(tmp_path: Path) -> None:
    """A tensor of several units, a copied one of several, types that change; with digests each file is one thread's."""
    tensors: Tensors = {
        f"{Q}.weight": ("BF16", matrix(9000, 1100, seed=1)),
        "model.embed_tokens.weight": ("BF16", matrix(5000, 1100, seed=2)),
        "model.norm.weight": ("F32", matrix(9, seed=3)),
    }
    base = write_base(
        tmp_path / "base", [tensors, {"lm_head.weight": ("BF16", matrix(50, 30, seed=3))}], dtype="bfloat16"
    )
    adapter = write_adapter(tmp_path / "adapter", pair(Q, out=9000, in_=1100, r=4, seed=4))
    seen = set()
    for number, options in enumerate([{"threads": 1}, {"threads": 2}, {"threads": 5}, {"digests": True}]):
        out = tmp_path / f"out{number}"
        report = merge_folder(base, [(adapter, 0.7)], out, **options)
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}
        if "digests" in options:
            assert {file.path: file.sha256 for file in report.files} == {
                name: digest for name, digest in files.items() if name.endswith(".safetensors")
            }
        seen.add((json.dumps(files), msgspec.json.encode((report.tensors, report.kept, report.cosine))))
    assert len(seen) == 1
