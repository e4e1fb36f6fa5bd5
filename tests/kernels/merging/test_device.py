"""The executor of a device: the bytes, the report and the failures of the CPU's.

Here the device is the CPU's memory and the operations are their reference implementations in torch;
`tests/kernels/ops/test_executor.py` runs the kernels.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.folders import read_adapter, read_base
from lora_kernels.checkpoint.sources import FolderSource
from lora_kernels.devices.accelerator import Accelerator
from lora_kernels.merging import merge_folder, plan_folder, plan_merge
from lora_kernels.merging.device import compute
from lora_kernels.merging.device import stream as on_device
from lora_kernels.merging.device.work import HostTensor, Part, kind_of, waves
from lora_kernels.merging.plan import shard_header
from lora_kernels.merging.stream import stream_chunks
from tests.kernels.checkpoints import Tensors, matrix, pair, read_model, write_adapter, write_base
from tests.kernels.merging.device_models import EXACT, K, Q, V, exact_adapter, exact_base, whole

DEVICE = Accelerator("cpu", "torch")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exact_base(tmp_path_factory.mktemp("exact") / "base")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exact_adapter(tmp_path_factory.mktemp("adapter") / "adapter")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("options", EXACT, ids=str)
def test_same_bytes_and_report_where_the_sums_are_exact(
    base: Path, adapter: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    one = merge_folder(
        base, [(adapter, 0.5), (adapter, -2.0)], tmp_path / "one", digests=True, min_kept=None, **options
    )
    other = merge_folder(
        base,
        [(adapter, 0.5), (adapter, -2.0)],
        tmp_path / "other",
        min_kept=None,
        device=DEVICE,
        digests=True,
        **options,
    )
    assert digests(tmp_path / "one") == digests(tmp_path / "other")
    assert [file.sha256 for file in one.files] == [file.sha256 for file in other.files]
    assert [tensor.name for tensor in one.tensors] == [tensor.name for tensor in other.tensors]
    for before, after in zip(one.tensors, other.tensors, strict=True):
        assert (before.kind, before.adapters, before.elements) == (after.kind, after.adapters, after.elements)
        assert after.max_delta == pytest.approx(before.max_delta, rel=1e-6)
        assert after.sums.realised_delta == pytest.approx(before.sums.realised_delta, rel=1e-5)
    assert (one.execution.device, one.execution.backend) == ("cpu", "numpy")
    assert other.execution.backend == "torch"


@pytest.mark.parametrize(("wave", "buffer"), [(1 << 30, 1 << 26), (9000, 700), (1, 4096)])
def test_bytes_do_not_depend_on_the_size_of_waves_and_buffers(
    base: Path, adapter: Path, wave: int, buffer: int
) -> None:
    plan = plan_folder(base, [(adapter, 0.5)])
    seen = []
    with FolderSource(base) as source, FolderSource(adapter) as factors:
        for shard in plan.shards:
            chunks = on_device.stream_chunks(
                plan, shard.file, base=source, adapters=[factors], accelerator=DEVICE, on_tensor=seen.append,
                wave_bytes=wave, buffer_bytes=buffer,
            )  # fmt: skip
            expected = stream_chunks(plan, shard.file, base=source, adapters=[factors])
            assert whole(chunks) == whole(expected)
    assert len(seen) == sum(bool(tensor.deltas) for shard in plan.shards for tensor in shard.tensors)


def test_long_tensors_go_by_rows_and_what_no_operation_covers_by_the_host(base: Path, adapter: Path) -> None:
    def items(limit: int, **options: Any) -> list[Any]:
        shards = plan_folder(base, [(adapter, 0.5)], **options).shards
        return [item for shard in shards for wave in waves(shard, limit) for item in wave.items]

    parts = [item for item in items(1 << 18) if isinstance(item, Part) and item.tensor.name == f"{V}.weight"]
    assert len(parts) > 1 and parts[0].r0 == 0 and parts[-1].r1 == 3000
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert all(before.r1 == after.r0 for before, after in pairwise(parts))
    assert not any(isinstance(item, HostTensor) for item in items(1 << 30))
    # NF4 has one mean for a tensor: rows do not do.
    assert [item.tensor.name for item in items(1 << 18, dtype="nf4") if isinstance(item, HostTensor)] == [f"{V}.weight"]
    stochastic = items(1 << 30, dtype="bfloat16", rounding="stochastic")
    assert {item.tensor.name for item in stochastic if isinstance(item, HostTensor)} == {
        f"{x}.weight" for x in (Q, K, V)
    }


def test_origins_are_the_ranges_that_no_adapter_changes(base: Path, adapter: Path) -> None:
    plan = plan_folder(base, [(adapter, 0.5)])
    with FolderSource(base) as source, FolderSource(adapter) as factors:
        for shard in plan.shards:
            copied = 0
            for chunk in on_device.stream_chunks(
                plan, shard.file, base=source, adapters=[factors], accelerator=DEVICE, buffer_bytes=1000
            ):
                if chunk.origin is not None:
                    copied += len(chunk.view)
                    assert bytes(chunk.view) == source.read(*chunk.origin, len(chunk.view))
            assert copied == sum(tensor.end - tensor.start for tensor in shard.tensors if tensor.copied)


class Counting(FolderSource):
    """Counts the bytes that are read."""

    count = 0

    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:
        super().read_into(path, offset, buffer)
        self.count += len(buffer)


def test_waves_are_read_ahead_and_no_more_than_memory_holds(base: Path, adapter: Path) -> None:
    """While the consumer holds the header, the next two waves come up; the others wait."""
    plan = plan_folder(base, [(adapter, 1.0)])
    shard = plan.shards[1]
    parts = [wave.parts for wave in waves(shard, 1) if wave.parts]
    assert len(parts) == 5
    sizes = [sum(part.source[2] - part.source[1] for part in found) for found in parts]
    with Counting(base) as source, FolderSource(adapter) as factors:
        chunks = on_device.stream_chunks(
            plan, shard.file, base=source, adapters=[factors], accelerator=DEVICE, wave_bytes=1, buffer_bytes=5000
        )
        next(chunks)
        deadline = time.monotonic() + 10
        while source.count < sum(sizes[:1]) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        # Copied bytes fill the other ring meanwhile.
        assert sizes[0] <= source.count <= sum(sizes[:2]) + 3 * 5000
        assert len(whole(chunks)) == shard.size - len(shard_header(shard))
    assert source.count == sum(tensor.source_end - tensor.source_start for tensor in shard.tensors)


def test_random_factors_are_within_the_bound(base: Path, tmp_path: Path) -> None:
    """2 (r + 1) 2^-24 of the sum of |B| |A|, scaled, and one rounding of the sum with W: `docs/devices.md`."""
    tensors = pair(Q, out=64, in_=96, r=16, seed=3)
    folder = write_adapter(tmp_path / "random", tensors, r=16, lora_alpha=32)
    for name, device in (("cpu", "cpu"), ("device", DEVICE)):
        merge_folder(base, [(folder, 1.0)], tmp_path / name, dtype="float32", device=device)  # type: ignore[arg-type]
    one, other = (read_model(tmp_path / name)[f"{Q}.weight"][1].astype(np.float64) for name in ("cpu", "device"))
    a, b = (np.abs(tensors[f"{Q}.lora_{half}.weight"][1]) for half in "AB")
    bound = 2 * (16 + 1) * 2.0**-24 * 2 * (b @ a) + 2 * 2.0**-24 * np.abs(one)
    assert (np.abs(one - other) <= bound).all()


def cases(folder: Path) -> Iterator[tuple[str, Path, Path, dict[str, Any], float]]:
    """Name, base, adapter, options, and the largest relative difference."""
    plain: Tensors = {f"{Q}.weight": ("BF16", matrix(64, 96, seed=1)), f"{K}.weight": ("F32", matrix(48, 96, seed=2))}
    base = write_base(folder / "plain", [plain], dtype="bfloat16")
    both = {**pair(Q, out=64, in_=96, r=4, seed=3), **pair(K, out=48, in_=96, r=4, seed=4)}
    lora = write_adapter(folder / "lora", both)
    magnitudes = {
        f"{Q}.lora_magnitude_vector": 1 + matrix(64, seed=5),
        f"{K}.lora_magnitude_vector": 1 + matrix(48, seed=6),
    }
    dora = write_adapter(
        folder / "dora", {**both, **{name: ("F32", values) for name, values in magnitudes.items()}}, use_dora=True
    )
    yield "dora", base, dora, {"dtype": "float32"}, 1e-5
    yield "dora onto nf4", base, dora, {"dtype": "float32", "onto": "nf4"}, 1e-5
    yield "dora to nf4", base, dora, {"dtype": "nf4"}, 1e-5
    merge_folder(base, [(lora, 0.0)], folder / "nf4", dtype="nf4")
    yield "from nf4", folder / "nf4", lora, {"dtype": "float32"}, 1e-6
    one = write_adapter(folder / "one", pair(Q, out=64, in_=96, r=4, seed=3))
    yield "from nf4, one untouched", folder / "nf4", one, {"dtype": "bfloat16"}, 0.0
    yield "from nf4 with dora", folder / "nf4", dora, {"dtype": "float32"}, 1e-5
    yield "nf4 to nf4", folder / "nf4", lora, {"dtype": "nf4"}, 0.0
    codes = np.random.default_rng(7).integers(-127, 128, (64, 96))
    int8: Tensors = {
        f"{Q}.weight": ("I8", codes),
        f"{Q}.SCB": ("F32", 1 + matrix(64, seed=8)),
        f"{K}.weight": plain[f"{K}.weight"],
    }
    quantization = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
    yield (
        "int8",
        write_base(folder / "int8", [int8], dtype="bfloat16", quantization_config=quantization),
        lora,
        {"dtype": "float32"},
        1e-6,
    )


def test_every_kind_that_a_device_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_BLOCK", 1000)  # several blocks of rows are measured
    for name, base, adapter, options, bound in cases(tmp_path):
        plan = plan_folder(base, [(adapter, 1.0)], **options)
        touched = [tensor for shard in plan.shards for tensor in shard.tensors if tensor.deltas]
        assert touched and all(kind_of(tensor) is not None for tensor in touched), name
        one = merge_folder(base, [(adapter, 1.0)], tmp_path / f"{name} one", min_kept=None, **options)
        other = merge_folder(
            base, [(adapter, 1.0)], tmp_path / f"{name} other", min_kept=None, device=DEVICE, **options
        )
        assert other.kept == pytest.approx(one.kept, rel=1e-4), name
        expected, found = read_model(tmp_path / f"{name} one"), read_model(tmp_path / f"{name} other")
        for tensor, (dtype, values) in expected.items():
            if dtype == "U8" or not bound:
                assert np.array_equal(values, found[tensor][1]), (name, tensor)
            else:
                np.testing.assert_allclose(found[tensor][1], values, rtol=bound, atol=bound, err_msg=f"{name} {tensor}")


@pytest.mark.parametrize(
    ("weights", "size"),
    [
        ({"dtype": "F16", "value": 65504.0}, 100.0),  # overflows
        ({"dtype": "BF16", "value": np.nan}, 0.1),
        ({"dtype": "BF16", "value": 1.0}, np.inf),  # in the adapter
    ],
)
def test_what_is_not_finite_is_refused_in_the_words_of_the_cpu(
    tmp_path: Path, weights: dict[str, Any], size: float
) -> None:
    base = write_base(tmp_path / "base", [{f"{Q}.weight": (weights["dtype"], np.full((8, 8), weights["value"]))}])
    factors: Tensors = {
        f"{Q}.lora_A.weight": ("F32", np.full((4, 8), size)),
        f"{Q}.lora_B.weight": ("F32", np.full((8, 4), size)),
    }
    adapter = write_adapter(tmp_path / "adapter", factors)
    said = []
    for device in ("cpu", DEVICE):
        with pytest.raises(RegistryError) as caught:
            merge_folder(base, [(adapter, 1.0)], tmp_path / "out", device=device)  # type: ignore[arg-type]
        said.append((caught.value.code, caught.value.detail, caught.value.hint))
    assert said[0] == said[1] and not (tmp_path / "out").exists()


def test_updates_whose_squares_underflow_are_summed_by_the_host(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "tiny", pair(Q, out=64, in_=96, r=4, seed=3, size=1e-16))
    one, other = (
        merge_folder(base, [(folder, 1.0)], tmp_path / name, dtype="float32", min_kept=None, device=device)  # type: ignore[arg-type]
        for name, device in (("cpu", "cpu"), ("device", DEVICE))
    )
    assert 0 < one.tensors[0].sums.delta_delta == other.tensors[0].sums.delta_delta


def test_a_truncated_base_ends_all_threads(base: Path, adapter: Path, tmp_path: Path) -> None:
    plan = plan_merge(read_base(base)[0], [read_adapter(adapter)])
    for shard in plan.shards:
        (tmp_path / shard.file).write_bytes((base / shard.file).read_bytes()[:-5])
    before = threading.active_count()
    with (
        FolderSource(tmp_path) as source,
        FolderSource(adapter) as factors,
        pytest.raises(RegistryError, match="5 bytes short"),
    ):
        whole(on_device.stream_chunks(plan, plan.shards[0].file, base=source, adapters=[factors], accelerator=DEVICE))
    assert threading.active_count() == before


def test_a_consumer_that_leaves_ends_all_threads(base: Path, adapter: Path) -> None:
    plan = plan_folder(base, [(adapter, 1.0)])
    before = threading.active_count()
    with FolderSource(base) as source, FolderSource(adapter) as factors:
        chunks = on_device.stream_chunks(
            plan, plan.shards[0].file, base=source, adapters=[factors], accelerator=DEVICE, buffer_bytes=512
        )
        next(chunks)
        assert threading.active_count() > before
        chunks.close()
    assert threading.active_count() == before


def test_a_full_disk_keeps_the_finished_files_and_the_next_run_resumes(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    sizes = [shard.size for shard in plan_folder(base, [(adapter, 1.0)]).shards]
    assert sizes[0] < sizes[1]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[0], before[1]))
    try:
        with pytest.raises(RegistryError, match="exceeds the limit") as caught:
            merge_folder(base, [(adapter, 1.0)], tmp_path / "out", device=DEVICE, threads=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "Run it again to resume; finished files: model-00001" in (caught.value.hint or "")
    (partial,) = tmp_path.glob(".out.*.partial")
    kept = (partial / "model-00001-of-00002.safetensors").stat()
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out", device=DEVICE)
    assert (tmp_path / "out" / "model-00001-of-00002.safetensors").stat().st_ino == kept.st_ino
    merge_folder(base, [(adapter, 1.0)], tmp_path / "whole", device=DEVICE)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_files_of_another_device_are_not_resumed(base: Path, adapter: Path, tmp_path: Path) -> None:
    """The record names one device, and bytes of another may differ in the last bits."""

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out", device=DEVICE, threads=1, progress=interrupt)
    (partial,) = tmp_path.glob(".out.*.partial")
    assert (partial / "model-00001-of-00002.safetensors").exists()
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert list(tmp_path.glob(".out.*")) == []


def test_killed_in_the_middle_and_run_again(base: Path, adapter: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from lora_kernels.devices.accelerator import Accelerator\n"
        "from lora_kernels.merging import merge_folder\n"
        "def progress(done, total):\n"
        "    if done > total // 2:\n"
        "        print('half', flush=True); time.sleep(60)\n"
        "merge_folder(sys.argv[1], [(sys.argv[2], 1.0)], sys.argv[3], threads=1, progress=progress,"
        " device=Accelerator('cpu', 'torch'))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(base), str(adapter), str(tmp_path / "out")], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"half\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out", device=DEVICE)
    merge_folder(base, [(adapter, 1.0)], tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert list(tmp_path.glob(".*")) == []
