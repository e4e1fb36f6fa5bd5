"""What the benchmarks rest on: docs/benchmarks.md shows what was measured, wrong results are found, memory is a process's own."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import devices, exact, fixtures, table
from benchmarks.process import ROOT, CommandFailed, measure
from lora_kernels.merging import merge_folder

TINY = fixtures.Llama(2, 64, 160, 4, 2, 96)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """A base, an adapter, and our merge of both."""
    monkeypatch.setenv(fixtures.ENVIRONMENT, str(tmp_path))
    base, adapter = fixtures.base("tiny", TINY), fixtures.adapter("lora", TINY, rank=4, targets=fixtures.QV)
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    return base, adapter, tmp_path / "out"


MACHINE = {"machine": {"cores": 2, "cpu": "Some CPU", "memory_gb": 24, "system": "Linux 6"}, "others": 0.02}


def test_the_page_of_benchmarks_shows_the_results() -> None:
    assert table.shown((ROOT / "docs/benchmarks.md").read_text("utf-8")) == table.tables()


def test_tables_are_made_of_the_results(tmp_path: Path) -> None:
    record = {
        **MACHINE,
        "runs": 5,
        "skipped": {"mergekit": "the package index did not answer"},
        "rows": [
            {
                "adapter": "qv16",
                "contestants": {"lora-reg": {"seconds": 0.5, "peak_mb": 41.2}},
                "times_cp": 1.25,
                "faster_than": {"PEFT": 12.0, "plain torch": 4.0},
            }
        ],
    }
    assert table.tables(tmp_path) == "Nothing has been measured yet.\n"
    (tmp_path / "merge.json").write_text(json.dumps(record))
    text = table.tables(tmp_path)
    assert "| q and v, rank 16 | 0.50 | 1.25 | 41 | 12.0 | 4.0 |" in text
    assert "Without mergekit: the package index did not answer" in text
    assert "2 cores of Some CPU" in text
    assert table.shown(table.with_tables(f"before\n{table.BEGIN}old\n{table.END}after\n", text)) == text


def test_a_part_of_peft_is_not_told_as_the_whole(tmp_path: Path) -> None:
    ours = {"seconds": 2.0, "peak_mb": 73.0, "combine_seconds": 1.1}
    peft = {"modules": 14, "combine_seconds": 50.0}
    row = {"method": "ties_svd", "model": "small", "ours": ours, "faster": 14.04, "call_faster": 30.0}
    record = {**MACHINE, "runs": 5, "svd": {"modules": 154, "ours": ours, "peft": peft}, "rows": [row]}
    (tmp_path / "compose.json").write_text(json.dumps(record))
    text = table.tables(tmp_path)
    assert "| svd | 2.00 | 73 | of 14 modules | 500 |" in text
    assert "| ties_svd, small model | 2.00 | 73 | 14.0 | 30.0 |" in text
    whole = {"modules": 154, "combine_seconds": 550.0, "seconds": 600.0}
    (tmp_path / "compose.json").write_text(json.dumps({**record, "svd": {**record["svd"], "peft": whole}}))
    assert "| svd | 2.00 | 73 | 300 | 500 |" in table.tables(tmp_path)


def test_our_merge_is_the_rounded_one(model: tuple[Path, Path, Path]) -> None:
    base, adapter, out = model
    checked = exact.check_merge(base, adapter, out, layers=(0, 1))
    assert checked["compared"] == 2 * (64 * 64 + 32 * 64)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("model.layers.1.self_attn.v_proj.weight", "instead of"),
        ("model.layers.0.mlp.up_proj.weight", "not touched by the adapter"),
    ],
)
def test_a_wrong_element_is_found(model: tuple[Path, Path, Path], name: str, sentence: str) -> None:
    base, adapter, out = model
    tensor = exact.tensors(out)[name]
    bits = np.memmap(tensor.file, "<u2", "r+", tensor.start, tensor.shape)
    # The element whose step is largest beside what float32 may add.
    row, column = np.unravel_index(int(np.argmax(bits & 0x7FFF)), bits.shape)
    bits[row, column] += 1
    bits.flush()
    with pytest.raises(exact.WrongResult, match=sentence):
        exact.check_merge(base, adapter, out, layers=(0, 1))


def test_a_merge_that_did_nothing_is_found(model: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, adapter, _ = model
    shutil.copytree(base, tmp_path / "copy")
    with pytest.raises(exact.WrongResult):
        exact.check_merge(base, adapter, tmp_path / "copy", layers=(0, 1))


def test_fixtures_are_the_same_everywhere(model: tuple[Path, Path, Path], tmp_path: Path, monkeypatch) -> None:
    base, adapter, _ = model
    monkeypatch.setenv(fixtures.ENVIRONMENT, str(tmp_path / "other"))
    again = [fixtures.base("tiny", TINY), fixtures.adapter("lora", TINY, rank=4, targets=fixtures.QV)]
    for one, other in zip((base, adapter), again, strict=True):
        assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in other.iterdir()}


def test_a_sparse_base_holds_zeros_and_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fixtures.ENVIRONMENT, str(tmp_path))
    large = fixtures.Llama(2, 512, 1376, 8, 8, 4096)
    base = fixtures.sparse_base("holes", large, shards=2)
    files = list(base.glob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) > 10 * sum(path.stat().st_blocks * 512 for path in files)
    found = exact.tensors(base)
    assert {name: tensor.shape for name, tensor in found.items()} == large.tensors()
    assert not any(tensor.raw().any() for tensor in found.values())


def test_peak_memory_is_the_process_own(tmp_path: Path) -> None:
    ours = np.ones(40_000_000)  # 320 MB that the child must not inherit
    small = measure([sys.executable, "-S", "-c", "pass"], tmp_path)
    large = measure([sys.executable, "-S", "-c", "bytearray(200_000_000)"], tmp_path)
    assert ours.all()
    assert small.peak_mb < 50
    assert 200 < large.peak_mb < 250
    with pytest.raises(CommandFailed, match="boom"):
        measure([sys.executable, "-S", "-c", "raise SystemExit('boom')"], tmp_path)


def test_whole_operations_on_a_device_are_run_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a GPU it measures nothing; a dry run goes through every operation on the CPU's memory."""
    monkeypatch.setenv(fixtures.ENVIRONMENT, str(tmp_path))
    lines = tmp_path / "lines"
    assert devices.main(["--model", "tiny", "--dry", "--rounds", "1", "--out", str(lines)]) == 0
    head, *rows = map(json.loads, lines.read_text().splitlines())
    assert head["dry"] and head["model"] == "tiny"
    assert [row["operation"] for row in rows] == [
        "merge", "merge onto NF4", "merge to NF4", "compose by TIES", "extract",
    ]  # fmt: skip
    assert all(row["backend"] == "torch" and row["bytes"] > 0 for row in rows)
    # One element in a thousand, at most, is rounded the other way.
    assert all(row["differing"] < row["bytes"] / 1000 for row in rows[:3])
    monkeypatch.setattr(devices, "find_device", lambda: "this machine has no NVIDIA driver")
    assert devices.main(["--model", "tiny"]) == 1
    assert "Nothing was measured: this machine has no NVIDIA driver." in capsys.readouterr().err
    late = ["--model", "tiny", "--dry", "--rounds", "1", "--deadline", "-1", "--out", str(lines)]
    assert devices.main(late) == 0
    assert all("skipped" in row for row in map(json.loads, lines.read_text().splitlines()[1:]))
