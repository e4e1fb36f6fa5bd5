"""A merge that was cut off goes on where it was: by its files, and only where they are certainly its own."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint import staging
from lora_kernels.merging import MergeReport, merge_folder
from tests.kernels.checkpoints import matrix, pair, write_adapter, write_base

Q = "model.layers.0.self_attn.q_proj"
SECOND = "model-00002-of-00002.safetensors"
FIRST = "model-00001-of-00002.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    first = {f"{Q}.weight": ("BF16", matrix(700, 300, seed=1))}
    return write_base(
        tmp_path / "base", [first, {"lm_head.weight": ("BF16", matrix(900, 300, seed=3))}], dtype="bfloat16"
    )


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", pair(Q, out=700, in_=300, r=4, seed=4))


def hidden(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob(".out.*.partial"))


def interrupted(base: Path, adapter: Path, out: Path, *, threads: int = 1) -> None:
    """A merge stopped by Ctrl-C within the second file."""
    size = (base / FIRST).stat().st_size

    def progress(done: int, total: int) -> None:
        if done > size + 1000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_folder(base, [(adapter, 1.0)], out, threads=threads, progress=progress)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_finished_files_are_not_made_again(base: Path, adapter: Path, tmp_path: Path) -> None:
    whole = merge_folder(base, [(adapter, 1.0)], tmp_path / "whole")
    interrupted(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (folder,) = hidden(tmp_path)
    inode = (folder / FIRST).stat().st_ino
    seen: list[int] = []
    again = merge_folder(
        base, [(adapter, 1.0)], tmp_path / "out", threads=1, progress=lambda done, _: seen.append(done)
    )
    assert min(seen) > (base / FIRST).stat().st_size
    assert (tmp_path / "out" / FIRST).stat().st_ino == inode
    assert again == whole
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert hidden(tmp_path) == []


def change_weight(base: Path, adapter: Path) -> tuple[Path, float]:
    return adapter, 0.5


def change_adapter(base: Path, adapter: Path) -> tuple[Path, float]:
    path = adapter / "adapter_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return adapter, 1.0


def change_base(base: Path, adapter: Path) -> tuple[Path, float]:
    status = (base / FIRST).stat()
    os.utime(base / FIRST, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    return adapter, 1.0


@pytest.mark.parametrize("change", [change_weight, change_adapter, change_base])
def test_another_merge_takes_nothing_of_it(
    base: Path, adapter: Path, tmp_path: Path, change: Callable[[Path, Path], tuple[Path, float]]
) -> None:
    interrupted(base, adapter, tmp_path / "out")
    chosen = change(base, adapter)
    seen: list[int] = []
    merge_folder(base, [chosen], tmp_path / "out", threads=1, progress=lambda done, _: seen.append(done))
    assert min(seen) < (base / FIRST).stat().st_size
    merge_folder(base, [chosen], tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert hidden(tmp_path) == []


def spoil_boot(folder: Path) -> None:
    (record,) = (folder / ".finished").glob("*.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "boot": "another"}))


def spoil_size(folder: Path) -> None:
    os.truncate(folder / FIRST, 100)


def spoil_record(folder: Path) -> None:
    (record,) = (folder / ".finished").glob("*.json")
    record.write_bytes(record.read_bytes()[:50])


@pytest.mark.parametrize("spoil", [spoil_boot, spoil_size, spoil_record])
def test_what_may_not_be_whole_is_made_again(
    base: Path, adapter: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    interrupted(base, adapter, tmp_path / "out")
    (folder,) = hidden(tmp_path)
    spoil(folder)
    (folder / "stray").mkdir()
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    merge_folder(base, [(adapter, 1.0)], tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_without_boots_to_tell_apart_nothing_is_believed(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(base, adapter, tmp_path / "out")
    monkeypatch.setattr(staging, "_BOOT_ID", tmp_path / "nowhere")
    seen: list[int] = []
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out", threads=1, progress=lambda done, _: seen.append(done))
    assert min(seen) < (base / FIRST).stat().st_size
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [FIRST, SECOND, "config.json", "model.safetensors.index.json"]
    )


def test_a_merge_that_is_refused_leaves_nothing(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "faint", {
        f"{Q}.lora_A.weight": ("F32", matrix(4, 300, seed=1) * 1e-6),
        f"{Q}.lora_B.weight": ("F32", matrix(700, 4, seed=2) * 1e-6),
    })  # fmt: skip
    with pytest.raises(RegistryError, match="survived the rounding"):
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "faint"]


def test_killed_after_the_first_file_it_goes_on(base: Path, adapter: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time; from lora_kernels.merging import merge_folder\n"
        "def progress(done, total):\n"
        "    if done > int(sys.argv[4]):\n"
        "        print('second', flush=True); time.sleep(60)\n"
        "merge_folder(sys.argv[1], [(sys.argv[2], 1.0)], sys.argv[3], threads=1, progress=progress)"
    )
    size = (base / FIRST).stat().st_size
    with subprocess.Popen(
        [sys.executable, "-c", script, str(base), str(adapter), str(tmp_path / "out"), str(size)],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"second\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    seen: list[int] = []
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out", threads=1, progress=lambda done, _: seen.append(done))
    assert min(seen) > size
    assert hidden(tmp_path) == []


def test_a_disk_that_fills_up_keeps_what_is_finished(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk; it cuts the second file, the larger one."""
    sizes = sorted((base / file).stat().st_size for file in (FIRST, SECOND))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sum(sizes) // 2, limits[1]))
    try:
        with pytest.raises((RegistryError, OSError)) as caught:
            merge_folder(base, [(adapter, 1.0)], tmp_path / "out", threads=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert isinstance(caught.value, RegistryError), caught.value
    assert caught.value.code == "storage-unavailable"
    assert SECOND in caught.value.detail
    assert f"finished files: {FIRST}" in caught.value.hint
    assert not (tmp_path / "out").exists()
    resumed: list[int] = []
    report: MergeReport = merge_folder(
        base, [(adapter, 1.0)], tmp_path / "out", threads=1, progress=lambda done, _: resumed.append(done)
    )
    assert min(resumed) > min(sizes)
    assert len(report.files) == 2
