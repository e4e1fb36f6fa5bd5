"""What a plan says, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lora_contract.errors import RegistryError
from lora_contract.tensors import header_length, parse_header
from lora_kernels.checkpoint.folders import read_adapter, read_base
from lora_kernels.checkpoint.sources import FolderSource, RangeSource
from lora_kernels.merging import AdapterInput, MergePlan, merge_folder, plan_merge, shard_size, stream_shard
from lora_kernels.types.forms.low_rank import LowRankProduct
from tests.kernels.checkpoints import Tensors, matrix, pair, read_model, read_raw, write_adapter, write_base

Q = "model.layers.0.self_attn.q_proj"
LLAMA: Tensors = {
    "model.embed_tokens.weight": ("BF16", matrix(50, 16, seed=1)),
    f"{Q}.weight": ("BF16", matrix(16, 16, seed=2)),
    "model.layers.0.mlp.down_proj.weight": ("BF16", matrix(16, 24, seed=3)),
    "model.norm.weight": ("BF16", matrix(16, seed=4)),
}
HEAD: Tensors = {"lm_head.weight": ("BF16", matrix(50, 16, seed=5))}
EMBEDDING: Tensors = {
    "model.embed_tokens.lora_embedding_A": ("F32", matrix(4, 50, seed=6)),
    "model.embed_tokens.lora_embedding_B": ("F32", matrix(16, 4, seed=7)),
}
PAIR = pair(Q, out=16, in_=16, r=4, seed=8)


def plan(base: Path, *adapters: Path, weights: tuple[float, ...] = (), dtype: str | None = None) -> MergePlan:
    inputs: list[AdapterInput] = [
        read_adapter(folder, weight) for folder, weight in zip(adapters, weights or [1.0] * len(adapters), strict=True)
    ]
    return plan_merge(read_base(base)[0], inputs, dtype)


def refused(*args: Any, **options: Any) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        plan(*args, **options)
    return caught.value


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base", [LLAMA, HEAD])


def test_importing_and_planning_load_no_numpy(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", PAIR)
    script = (
        "import sys; import lora_kernels.merging as m; from lora_kernels.checkpoint.folders import read_base, read_adapter;"
        f"m.plan_merge(read_base({str(base)!r})[0], [read_adapter({str(adapter)!r})]);"
        "print([name for name in ('numpy', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_plan_keeps_files_and_order_and_prints_as_json(base: Path, tmp_path: Path) -> None:
    made = plan(base, write_adapter(tmp_path / "adapter", PAIR), weights=(0.5,), dtype="float32")
    assert [(shard.file, [tensor.name for tensor in shard.tensors]) for shard in made.shards] == [
        ("model-00001-of-00002.safetensors", list(LLAMA)),
        ("model-00002-of-00002.safetensors", ["lm_head.weight"]),
    ]
    touched = [tensor for shard in made.shards for tensor in shard.tensors if tensor.deltas]
    assert [
        (t.name, t.deltas[0].update.scale, type(t.deltas[0].update), t.deltas[0].adapter, t.dtype) for t in touched
    ] == [(f"{Q}.weight", 1.0, LowRankProduct, 0, "F32")]
    printed = json.dumps(msgspec.to_builtins(made))
    assert msgspec.json.decode(printed, type=MergePlan) == made
    assert printed == json.dumps(msgspec.to_builtins(plan(base, tmp_path / "adapter", weights=(0.5,), dtype="float32")))


def test_stream_has_the_size_that_the_plan_says_and_a_header_that_parses(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", PAIR)
    for dtype in (None, "float32", "float16"):
        made = plan(base, adapter, dtype=dtype)
        with FolderSource(base) as source, FolderSource(adapter) as factors:
            for shard in made.shards:
                data = b"".join(
                    bytes(chunk) for chunk in stream_shard(made, shard.file, base=source, adapters=[factors])
                )
                assert len(data) == shard_size(made, shard.file)
                header = parse_header(data[: 8 + header_length(data[:8], len(data))], len(data))
                assert header.metadata == {"format": "pt"}
                assert [(t.name, t.dtype, t.file_start, t.file_end) for t in header.tensors] == [
                    (t.name, t.dtype, t.start, t.end) for t in shard.tensors
                ]


def test_range_source_gives_the_same_bytes_whatever_its_window(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", PAIR)
    made = plan(base, adapter)
    file = made.shards[0].file
    asked: list[int] = []

    def ranges(folder: Path, window: int) -> RangeSource:
        def read(path: str, offset: int, length: int) -> bytes:
            data = (folder / path).read_bytes()
            assert offset + length <= len(data)
            asked.append(length)
            return data[offset : offset + length]

        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        return RangeSource(read, sizes=sizes, window=window)

    with FolderSource(base) as source, FolderSource(adapter) as factors:
        expected = b"".join(bytes(chunk) for chunk in stream_shard(made, file, base=source, adapters=[factors]))
    for window in (1, 100, 1 << 20):
        sources = {"base": ranges(base, window), "adapters": [ranges(adapter, window)]}
        assert b"".join(bytes(chunk) for chunk in stream_shard(made, file, **sources)) == expected
    assert max(asked) <= 1 << 20


def test_embedding_is_added_transposed(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", EMBEDDING)
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out", dtype="float32")
    a, b = (values.astype(np.float32) for _, values in EMBEDDING.values())
    before = (read_model(base)["model.embed_tokens.weight"][1].astype(np.uint32) << 16).view(np.float32)
    got = read_model(tmp_path / "out")["model.embed_tokens.weight"][1]
    np.testing.assert_allclose(got, before + 2 * (b @ a).T, rtol=0, atol=1e-8)


def test_base_layer_copies_are_left_out_knowingly(base: Path, tmp_path: Path) -> None:
    copy = {"model.embed_tokens.base_layer.weight": ("BF16", matrix(50, 16, seed=99))}
    report = merge_folder(base, [(write_adapter(tmp_path / "adapter", {**EMBEDDING, **copy}), 1.0)], tmp_path / "out")
    assert report.ignored == ("base_model.model.model.embed_tokens.base_layer.weight",)
    merge_folder(base, [(write_adapter(tmp_path / "plain", EMBEDDING), 1.0)], tmp_path / "plain-out")
    for file in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "plain-out" / file).read_bytes()


def test_saved_module_replaces_and_is_reported_apart(base: Path, tmp_path: Path) -> None:
    saved = {"lm_head.weight": ("F32", matrix(50, 16, seed=20))}
    adapter = write_adapter(tmp_path / "adapter", {**PAIR, **saved}, modules_to_save=["lm_head"])
    report = merge_folder(base, [(adapter, 1.0)], tmp_path / "out", dtype="float32")
    np.testing.assert_array_equal(
        read_model(tmp_path / "out")["lm_head.weight"][1], saved["lm_head.weight"][1].astype(np.float32)
    )
    assert [(tensor.name, tensor.kind) for tensor in report.tensors] == [
        ("lm_head.weight", "replace"),
        (f"{Q}.weight", "update"),
    ]
    alone = merge_folder(base, [(write_adapter(tmp_path / "pair", PAIR), 1.0)], tmp_path / "pair-out", dtype="float32")
    assert report.kept == alone.kept


def test_trained_bias_replaces(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", [{**LLAMA, f"{Q}.bias": ("BF16", matrix(16, seed=30))}])
    tensors = {**PAIR, f"{Q}.base_layer.bias": ("BF16", matrix(16, seed=31))}
    merge_folder(folder, [(write_adapter(tmp_path / "adapter", tensors, bias="lora_only"), 1.0)], tmp_path / "out")
    np.testing.assert_array_equal(
        read_model(tmp_path / "out")[f"{Q}.bias"][1],
        read_raw(tmp_path / "adapter" / "adapter_model.safetensors")[f"base_model.model.{Q}.base_layer.bias"][1],
    )


def test_conv1d_weights_take_the_transpose_also_where_they_are_square(tmp_path: Path) -> None:
    """GPT-2 stores (in, out), without the `transformer.` that its adapters write."""
    names = {"h.0.attn.c_attn": (16, 48), "h.0.attn.c_proj": (16, 16)}
    weights = {f"{name}.weight": ("F32", matrix(*shape, seed=1)) for name, shape in names.items()}
    folder = write_base(
        tmp_path / "base",
        [{**weights, "wte.weight": ("F32", matrix(9, 16, seed=2))}],
        model_type="gpt2",
        architectures=["GPT2LMHeadModel"],
        tie_word_embeddings=True,
    )
    tensors: dict[str, Any] = {}
    for name, (in_, out) in names.items():
        tensors |= pair(f"transformer.{name}", out=out, in_=in_, r=4, seed=3)
    merge_folder(folder, [(write_adapter(tmp_path / "adapter", tensors, fan_in_fan_out=True), 1.0)], tmp_path / "out")
    for name in names:
        a, b = (tensors[f"transformer.{name}.lora_{half}.weight"][1].astype(np.float32) for half in "AB")
        expected = weights[f"{name}.weight"][1].astype(np.float32) + 2 * (b @ a).T
        np.testing.assert_allclose(read_model(tmp_path / "out")[f"{name}.weight"][1], expected, rtol=0, atol=1e-7)


def test_fan_in_fan_out_on_an_unknown_layout_is_refused(base: Path, tmp_path: Path) -> None:
    error = refused(base, write_adapter(tmp_path / "adapter", PAIR, fan_in_fan_out=True))
    assert error.code == "unsupported" and error.facts["module"] == Q


@pytest.mark.parametrize(
    ("tensors", "config", "code", "words"),
    [
        ({"model.layers.9.self_attn.q_proj.lora_A.weight": ("F32", matrix(4, 16, seed=1)), "model.layers.9.self_attn.q_proj.lora_B.weight": ("F32", matrix(16, 4, seed=1))}, {}, "rejected", "model.layers.9.self_attn.q_proj"),
        ({f"{Q}.lora_A.weight": PAIR[f"{Q}.lora_A.weight"]}, {}, "rejected", "no matching lora_B"),
        ({f"{Q}.lora_B.weight": PAIR[f"{Q}.lora_B.weight"]}, {}, "rejected", "no matching lora_A"),
        (pair(Q, out=12, in_=16, r=4, seed=1), {}, "rejected", "12 x 16"),
        (pair(Q, out=16, in_=16, r=3, seed=1), {}, "rejected", "rank 3"),
        ({**pair(Q, out=16, in_=16, r=4, seed=1), f"{Q}.lora_B.weight": ("F32", matrix(16, 5, seed=1))}, {}, "rejected", "not a pair"),
        ({**PAIR, "model.norm.weight": ("BF16", matrix(16, seed=1))}, {}, "rejected", "overwrite the base"),
        ({**PAIR, "score.weight": ("BF16", matrix(3, 16, seed=1))}, {"modules_to_save": ["score"]}, "rejected", "does not have"),
        ({**PAIR, "lm_head.weight": ("BF16", matrix(51, 16, seed=1))}, {"modules_to_save": ["lm_head"]}, "rejected", "51 x 16"),
        ({**PAIR, f"{Q}.lora_A.weight": ("I8", np.zeros((4, 16)))}, {}, "rejected", "I8"),
        (pair("model.norm", out=16, in_=16, r=4, seed=1), {}, "unsupported", "norm"),
        ({**PAIR, f"{Q}.lora_magnitude_vector": ("F32", matrix(16, seed=1))}, {}, "rejected", "DoRA, but adapter_config.json does not set use_dora"),
        ({**PAIR, f"{Q}.lora_B.bias": ("F32", matrix(16, seed=1))}, {}, "rejected", "lora_bias, which adapter_config.json does not set"),
        ({**PAIR, f"{Q}.lora_B.bias": ("F32", matrix(16, seed=1))}, {"lora_bias": True}, "rejected", "which the base does not have"),
        ({**PAIR, "model.mha.lora_A": ("F32", matrix(4, 16, seed=1))}, {}, "rejected", "model.mha.lora_A has no matching lora_B"),
        ({**EMBEDDING, "model.embed_tokens.base_layer.weight": ("F32", matrix(51, 16, seed=1))}, {}, "rejected", "resized base"),
        (PAIR, {"use_dora": True}, "rejected", f"{Q} has no lora_magnitude_vector"),
        ({**PAIR, f"{Q}.lora_magnitude_vector": ("F32", matrix(15, seed=1))}, {"use_dora": True}, "rejected", "16 outputs"),
        (PAIR, {"target_modules": ["k_proj", "v_proj"]}, "rejected", f"adapts {Q}, which target_modules of adapter_config.json does not name"),
        (PAIR, {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, "rejected", "does not name"),
        (PAIR, {"target_modules": ["q_proj"], "layers_to_transform": [1]}, "rejected", "does not name"),
        (pair("lm_head", out=50, in_=16, r=4, seed=1), {"target_modules": "all-linear"}, "rejected", "adapts lm_head, which"),
        (PAIR, {"use_qalora": True}, "unsupported", "QALoRA"),
        (PAIR, {"arrow_config": {"top_k": 2}}, "unsupported", "Arrow"),
        (PAIR, {"kasa_config": {"beta": 1}}, "unsupported", "kasa_config"),
        (PAIR, {"init_lora_weights": "pissa"}, "unsupported", "pissa"),
        (PAIR, {"alora_invocation_tokens": [1, 2]}, "unsupported", "activated LoRA"),
        (PAIR, {"layer_replication": [[0, 1]]}, "unsupported", "layer_replication"),
        ({"prompt_embeddings": ("F32", matrix(4, 16, seed=1))}, {"peft_type": "PREFIX_TUNING"}, "unsupported", "PREFIX_TUNING"),
    ],
)  # fmt: skip
def test_what_cannot_be_merged_is_named(
    base: Path, tmp_path: Path, tensors: Tensors, config: dict[str, Any], code: str, words: str
) -> None:
    error = refused(base, write_adapter(tmp_path / "adapter", tensors, **config))
    assert error.code == code and words in error.detail, error.detail


def test_tied_base_takes_other_updates(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", [LLAMA], tie_word_embeddings=True)
    assert len(plan(folder, write_adapter(tmp_path / "adapter", PAIR)).shards) == 1


def test_two_adapters_that_replace_one_module(base: Path, tmp_path: Path) -> None:
    saved = {**PAIR, "lm_head.weight": ("BF16", matrix(50, 16, seed=1))}
    first, second = (write_adapter(tmp_path / name, saved, modules_to_save=["lm_head"]) for name in "ab")
    error = refused(base, first, second)
    assert error.code == "rejected" and error.detail.startswith("lm_head.weight: adapter 1 and 2 replace it")
    adds = write_adapter(tmp_path / "c", pair("lm_head", out=50, in_=16, r=4, seed=1))
    error = refused(base, adds, first)
    assert error.code == "rejected" and "adapter 2 replaces it, and adapter 1 adds to it" in error.detail


def test_saved_module_cannot_be_weighted(base: Path, tmp_path: Path) -> None:
    saved = {**PAIR, "lm_head.weight": ("BF16", matrix(50, 16, seed=1))}
    error = refused(base, write_adapter(tmp_path / "a", saved, modules_to_save=["lm_head"]), weights=(0.5,))
    assert error.code == "rejected" and "cannot be weighted by 0.5" in error.detail


def test_weight_and_dtype_must_make_sense(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", PAIR)
    assert refused(base, adapter, weights=(float("nan"),)).code == "invalid-request"
    assert refused(base, adapter, dtype="int8").code == "invalid-request"


@pytest.mark.parametrize(("dtype", "values"), [("I8", np.zeros((16, 16))), ("F64", np.zeros((16, 16)))])
def test_base_weights_that_cannot_be_added_to(tmp_path: Path, dtype: str, values: Any) -> None:
    folder = write_base(tmp_path / "base", [{**LLAMA, f"{Q}.weight": (dtype, values)}])
    error = refused(folder, write_adapter(tmp_path / "a", PAIR))
    assert error.code == "unsupported" and error.facts["tensor"] == f"{Q}.weight" and dtype in error.detail


def test_order_of_patterns_and_rslora_decide_the_scale(base: Path, tmp_path: Path) -> None:
    config = {
        "r": 9,
        "lora_alpha": 1,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 4},
        "alpha_pattern": {"self_attn.q_proj": 6, "q_proj": 7},
    }
    made = plan(base, write_adapter(tmp_path / "a", PAIR, **config), weights=(-2.0,))
    (delta,) = [delta for shard in made.shards for tensor in shard.tensors for delta in tensor.deltas]
    assert delta.update.scale == 6 / 2 * -2.0


def test_a_file_that_shrinks_after_the_plan_is_corrupt(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", PAIR)
    made = plan(base, adapter)
    file = base / made.shards[0].file
    sizes = {
        file.name: file.stat().st_size,
        "adapter_model.safetensors": (adapter / "adapter_model.safetensors").stat().st_size,
    }
    os.truncate(file, sizes[file.name] - 1)

    def read(path: str, offset: int, length: int) -> bytes:
        return (base / path).read_bytes()[offset : offset + length]

    with FolderSource(base) as folder, FolderSource(adapter) as factors:
        for source in (folder, RangeSource(read, sizes=sizes)):
            with pytest.raises(RegistryError, match="short of the size in its header") as caught:
                for _ in stream_shard(made, file.name, base=source, adapters=[factors]):
                    pass
            assert caught.value.code == "corrupt" and caught.value.facts["path"] == file.name
