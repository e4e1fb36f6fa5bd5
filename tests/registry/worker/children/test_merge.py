"""What a merge leaves alone does not travel: the bytes that a worker sends to a real S3 server are counted."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.recipe import MergeRecipe, RecipeInput
from lora_kernels.devices import Execution, accelerator
from lora_kernels.devices.accelerator import Accelerator
from lora_kernels.merging import merge_folder
from lora_registry.blobs.local import LocalStore
from lora_registry.blobs.protocols import BlobStore
from lora_registry.processes.child import ChildReporter
from lora_registry.worker.children import files as files_module
from lora_registry.worker.children import merge as merge_child
from lora_registry.worker.children.files import Files, StoredFile, ThreadSource
from tests.kernels.checkpoints import write_base
from tests.kernels.merging.device_models import exact_adapter, exact_base
from tests.support.adapters import fingerprint_of_files, make_draft, read_folder
from tests.support.faults import FaultProxy
from tests.support.s3 import BUCKET, S3Server

MIB = 2**20
HIDDEN, VOCABULARY = 64, 120_000


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of 15 MiB, nearly all of it the embedding, which no adapter of the tests touches."""
    generator = np.random.default_rng(3)

    def weight(*shape: int) -> tuple[str, Any]:
        return "BF16", generator.integers(0x3C00, 0x3E00, shape, dtype=np.uint16)

    tensors = {
        "model.embed_tokens.weight": weight(VOCABULARY, HIDDEN),
        "model.layers.0.self_attn.q_proj.weight": weight(HIDDEN, HIDDEN),
        "model.layers.0.self_attn.v_proj.weight": weight(HIDDEN, HIDDEN),
        "model.norm.weight": weight(HIDDEN),
    }
    return write_base(
        tmp_path_factory.mktemp("copied") / "base",
        [tensors],
        hidden_size=HIDDEN,
        num_attention_heads=4,
        num_hidden_layers=1,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )


@pytest.fixture(params=["ministack", "swift"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def silent() -> Iterator[ChildReporter]:
    reading, writing = os.pipe()
    os.close(reading)

    class Silent(ChildReporter):
        def send(self, message: dict[str, Any]) -> None:
            pass

    yield Silent(writing)
    os.close(writing)


def put(store: BlobStore, files: dict[str, bytes]) -> Files:
    def one(data: bytes) -> StoredFile:
        digest, size = store.put_unknown(data[begin : begin + MIB] for begin in range(0, len(data), MIB))
        return StoredFile(str(digest), size)

    return {path: one(data) for path, data in files.items()}


def test_a_merge_sends_the_touched_tensors_alone(
    server: S3Server, base: Path, silent: ChildReporter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = read_folder(base)
    draft = make_draft(fingerprint_of_files(files), rank=2, seed=4, targets=["q_proj", "v_proj"])
    adapter = draft.write(tmp_path / "adapter")
    merge_folder(base, [(adapter, 1.0)], tmp_path / "merged", min_kept=None)
    expected = (tmp_path / "merged" / "model.safetensors").read_bytes()
    prefix = f"copied/{uuid.uuid4().hex}"
    with FaultProxy(int(server.http.rpartition(":")[2])) as proxy, server.credentials():
        store = server.store(prefix=prefix)
        recipe = MergeRecipe(
            operation_version=1, base=str(Digest.of(b"")), inputs=(RecipeInput(str(Digest.of(b"")), 1.0),), target="a/b"
        )
        data = merge_child.MergeInput(recipe, put(store, files), (put(store, draft.files()),))
        monkeypatch.setenv("LORA_REG_STORAGE_URL", f"s3://{BUCKET}/{prefix}")
        monkeypatch.setenv("LORA_REG_S3_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("LORA_REG_S3_REGION", "us-east-1")
        (planned,) = merge_child.plan(data, silent).weights
        assert planned.file == "model.safetensors"
        proxy.reset()
        made = merge_child.merge_shard(merge_child.ShardInput(planned, data.base, data.inputs), silent)
        sent = proxy.passed[True]
    assert (made.digest, made.size) == (str(Digest.of(expected)), len(expected))
    assert store.read(made.where) == expected
    assert len(expected) > 14 * MIB
    # A part has at least 5 MiB, so a short header before a long run takes so much of the run with it.
    assert sent < 7.5 * MIB, f"{sent} of {len(expected)} bytes were sent"


def on_a_gpu(folder: Path) -> tuple[merge_child.MergeInput, Path]:
    """A merge that asks for a GPU, in a store in a folder, and what the CPU makes of it."""
    base, adapter = exact_base(folder / "base", rows=70), exact_adapter(folder / "adapter", rows=70)
    merge_folder(base, [(adapter, 1.0)], folder / "merged")
    nothing = str(Digest.of(b""))
    recipe = MergeRecipe(
        operation_version=1, base=nothing, inputs=(RecipeInput(nothing, 1.0),), target="a/b", device="cuda"
    )
    store = LocalStore(folder / "store")
    return merge_child.MergeInput(recipe, put(store, read_folder(base)), (put(store, read_folder(adapter)),)), folder


def test_a_shard_on_a_device_has_the_bytes_of_the_cpu_and_names_the_device(
    silent: ChildReporter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The device is the CPU's memory, with the reference implementations; factors are such that sums are exact."""
    data, folder = on_a_gpu(tmp_path)
    found = Execution("cuda", "triton", "NVIDIA X", "triton 3", "requested")
    monkeypatch.setattr(files_module, "blobs", lambda: LocalStore(folder / "store"))
    monkeypatch.setattr(merge_child, "require", lambda device: found if device == "cuda" else None)
    monkeypatch.setattr(accelerator, "Accelerator", lambda execution: Accelerator("cpu", "torch", execution=execution))
    for planned in merge_child.plan(data, silent).weights:
        made = merge_child.merge_shard(
            merge_child.ShardInput(planned, data.base, data.inputs, data.recipe.device), silent
        )
        assert LocalStore(folder / "store").read(made.where) == (folder / "merged" / planned.file).read_bytes()
        assert made.execution == found and all(tensor.sums.delta_delta > 0 for tensor in made.tensors)


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_a_worker_without_a_gpu_says_so(silent: ChildReporter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data, folder = on_a_gpu(tmp_path)
    monkeypatch.setattr(files_module, "blobs", lambda: LocalStore(folder / "store"))
    planned = merge_child.plan(data, silent).weights[0]
    with pytest.raises(RegistryError, match="The device `cuda` was requested") as caught:
        merge_child.merge_shard(merge_child.ShardInput(planned, data.base, data.inputs, "cuda"), silent)
    assert caught.value.code == "unsupported"


def test_one_source_for_many_threads(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    data = np.random.default_rng(5).bytes(3_000_000)
    source = ThreadSource(store, put(store, {"a": data, "b": data[::-1]}))

    def look(number: int) -> bool:
        path, whole = ("a", data) if number % 2 else ("b", data[::-1])
        offset = number * 9_973 % 2_900_000
        buffer = bytearray(5000)
        source.read_into(path, offset, memoryview(buffer))
        return bytes(buffer) == whole[offset : offset + 5000]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(look, range(600)))
