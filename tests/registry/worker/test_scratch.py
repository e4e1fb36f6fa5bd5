"""Working folders: one's own is empty and goes at the end; those of killed processes go with the next."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lora_registry.worker import scratch

HOLD = """
import sys, time
from pathlib import Path
from lora_registry.worker import scratch
with scratch.folder(Path(sys.argv[1])) as folder:
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("x")
    print(folder, flush=True)
    time.sleep(600)
"""


def held(data: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(data)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_lives_as_long_as_its_block(tmp_path: Path) -> None:
    with scratch.folder(tmp_path) as one, scratch.folder(tmp_path) as two:
        assert one != two
        assert list(one.iterdir()) == []
        (one / "file").write_text("x")
        assert scratch.sweep(tmp_path) == 0
        assert (one / "file").exists()
    assert list((tmp_path / scratch.NAME).iterdir()) == []
    with pytest.raises(KeyError), scratch.folder(tmp_path) as failing:
        raise KeyError
    assert not failing.exists()


def test_the_folder_of_a_killed_process_goes_with_the_next(tmp_path: Path) -> None:
    (living, kept), (killed, left) = held(tmp_path), held(tmp_path)
    with living, killed:
        killed.kill()
        killed.wait()
        assert (left / "sub" / "file").exists()
        with scratch.folder(tmp_path):
            assert not left.exists()
            assert (kept / "sub" / "file").exists()
        living.kill()
        living.wait()
    assert scratch.sweep(tmp_path) == 1
    assert not kept.exists()


def test_many_at_once_keep_off_each_other(tmp_path: Path) -> None:
    def use(number: int) -> bool:
        with scratch.folder(tmp_path) as folder:
            (folder / "mine").write_text(str(number))
            scratch.sweep(tmp_path)
            return (folder / "mine").read_text() == str(number)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(60)))
    assert scratch.sweep(tmp_path) == 0
