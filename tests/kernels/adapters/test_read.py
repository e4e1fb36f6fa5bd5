"""Reading low-rank adapters: the products, against an independent reader in float64, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lora_contract.errors import RegistryError
from lora_kernels.adapters import open_adapter
from tests.kernels.checkpoints import exact, matrix, pair, read_raw, write_adapter
from tests.support.testbed import require_testbed

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"


def product(folder: Path, module: str) -> np.ndarray:
    with open_adapter(folder) as reader:
        found = reader.load(module)
    return found.scale * (found.b.astype(np.float64) @ found.a.astype(np.float64))


def test_modules_are_sorted_and_scaled_by_their_patterns(tmp_path: Path) -> None:
    tensors = {
        **pair(V, out=12, in_=20, r=6, seed=1, dtype="BF16"),
        **pair(Q, out=24, in_=20, r=3, seed=2, dtype="F16"),
    }
    folder = write_adapter(
        tmp_path / "a", tensors, r=6, lora_alpha=18, rank_pattern={"q_proj": 3}, alpha_pattern={"q_proj": 12}
    )
    with open_adapter(folder) as reader:
        assert reader.modules == (Q, V) and reader.extras == ()
        shape = reader.shape(Q)
        assert (shape.kind, shape.rank, shape.inputs, shape.outputs, shape.dtype) == ("linear", 3, (20,), 24, "F16")
        q, v = reader.load(Q), reader.load(V)
    assert (q.scale, v.scale) == (4.0, 3.0)
    stored = read_raw(folder / "adapter_model.safetensors")
    for module, found in ((Q, q), (V, v)):
        for half, values in (("A", found.a), ("B", found.b)):
            assert values.dtype == np.float32
            np.testing.assert_array_equal(
                values, exact(*stored[f"base_model.model.{module}.lora_{half}.weight"]).astype(np.float32)
            )


def test_rslora_divides_by_the_root_of_the_rank(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", pair(Q, out=8, in_=8, r=4, seed=1), use_rslora=True)
    with open_adapter(folder) as reader:
        assert reader.load(Q).scale == 4.0


def test_adalora_multiplies_by_its_singular_values(tmp_path: Path) -> None:
    a, b, e = matrix(5, 20, seed=1), matrix(12, 5, seed=2), matrix(5, 1, seed=3)
    tensors = {f"{Q}.lora_A": ("F32", a), f"{Q}.lora_B": ("F32", b), f"{Q}.lora_E": ("F32", e)}
    folder = write_adapter(tmp_path / "a", tensors, peft_type="ADALORA", init_r=12, r=8, lora_alpha=32)
    expected = 32 / (12 + 1e-5) * (b @ np.diag(e[:, 0]) @ a)
    # Three factors rounded to float32, one product rounded: each relative 2^-24 of the absolute terms.
    bound = 5 * 2.0**-24 * 32 / 12 * (np.abs(b) @ np.diag(np.abs(e[:, 0])) @ np.abs(a))
    assert (np.abs(product(folder, Q) - expected) <= bound).all()


def test_embeddings_and_convolutions_keep_their_shapes(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.lora_embedding_A": ("F32", matrix(4, 30, seed=1)),
        "model.embed_tokens.lora_embedding_B": ("F32", matrix(8, 4, seed=2)),
        "model.conv.lora_A.weight": ("F32", matrix(4, 6, 3, 3, seed=3)),
        "model.conv.lora_B.weight": ("F32", matrix(10, 4, 1, 1, seed=4)),
        "model.embed_tokens.base_layer.weight": ("F32", matrix(30, 8, seed=5)),
    }
    with open_adapter(write_adapter(tmp_path / "a", tensors)) as reader:
        conv, table = (reader.load(module) for module in ("model.conv", "model.embed_tokens"))
        assert [(extra.kind, extra.module) for extra in reader.extras] == [("copy", "model.embed_tokens")]
    assert (conv.kind, conv.a.shape, conv.b.shape) == ("conv", (4, 54), (10, 4))
    assert conv.stored_shapes == ((4, 6, 3, 3), (10, 4, 1, 1))
    assert (table.kind, table.a.shape, table.b.shape) == ("embedding", (4, 30), (8, 4))
    assert table.stored_shapes == ((4, 30), (8, 4))


@pytest.mark.parametrize(
    ("config", "extra", "name"),
    [
        ({"use_dora": True}, {}, "DoRA"),
        ({}, {f"{Q}.lora_magnitude_vector": ("F32", matrix(8, seed=9))}, "DoRA"),
        ({"lora_bias": True}, {}, "lora_bias"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, {}, "expert parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "pissa_niter_4"),
        ({"kasa_config": {"beta": 1}}, {}, "KaSA"),
        ({"trainable_token_indices": [1]}, {}, "trainable tokens"),
        ({"peft_type": "IA3"}, {}, "IA3"),
        ({"peft_type": "BOFT"}, {}, "BOFT"),
        ({"peft_type": "VERA"}, {}, "VERA"),
        ({"peft_type": "OFT"}, {}, "OFT"),
    ],
)
def test_what_is_no_low_rank_update_is_refused_by_name(tmp_path: Path, config: dict, extra: dict, name: str) -> None:
    folder = write_adapter(tmp_path / "a", {**pair(Q, out=8, in_=8, r=4, seed=1), **extra}, **config)
    with pytest.raises(RegistryError, match=name) as caught, open_adapter(folder):
        pass
    assert caught.value.code == "unsupported" and "plain LoRA" in caught.value.hint


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop(f"{Q}.lora_A.weight"), r"q_proj\.lora_B\.weight has no matching lora_A"),
        (lambda t: t.pop(f"{Q}.lora_B.weight"), r"q_proj\.lora_A\.weight has no matching lora_B"),
        (lambda t: t.update({f"{Q}.lora_B.weight": ("F32", matrix(8, 3, seed=1))}), "8 x 3 are not a pair"),
        (lambda t: t.update({f"{Q}.lora_A.weight": ("F32", matrix(4, seed=1))}), "are not a pair"),
        (lambda t: t.update({f"{Q}.lora_A.weight": ("I64", np.ones((4, 8)))}), "has the dtype I64"),
        (
            lambda t: t.update({"model.norm.weight": ("F32", matrix(8, seed=1))}),
            r"norm\.weight is not a tensor of a LORA adapter",
        ),
        (lambda t: t.update(pair(V, out=8, in_=8, r=5, seed=1)), "has rank 5, but .* rank 4"),
    ],
)
def test_faults_name_the_tensor(tmp_path: Path, spoil, message: str) -> None:
    tensors = dict(pair(Q, out=8, in_=8, r=4, seed=1))
    spoil(tensors)
    folder = write_adapter(tmp_path / "a", tensors)
    with pytest.raises(RegistryError, match=message) as caught, open_adapter(folder):
        pass
    assert caught.value.code == "rejected" and caught.value.facts["tensor"].startswith("base_model.model.")


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_value_that_is_not_finite_names_the_tensor(tmp_path: Path, bad: float) -> None:
    tensors = pair(Q, out=8, in_=8, r=4, seed=1)
    tensors[f"{Q}.lora_A.weight"][1][3, 7] = bad
    folder = write_adapter(tmp_path / "a", tensors)
    with open_adapter(folder) as reader, pytest.raises(RegistryError, match=r"A\.weight has 1 values") as caught:
        reader.load(Q)
    assert caught.value.code == "rejected"


def test_tensors_that_are_no_factors_are_listed(tmp_path: Path) -> None:
    tensors = {
        **pair(Q, out=8, in_=8, r=4, seed=1),
        "lm_head.weight": ("BF16", matrix(16, 8, seed=2)),
        f"{Q}.base_layer.bias": ("F32", matrix(8, seed=3)),
    }
    folder = write_adapter(tmp_path / "a", tensors, modules_to_save=["lm_head"], bias="all")
    with open_adapter(folder) as reader:
        assert [(extra.kind, extra.module) for extra in reader.extras] == [("saved", "lm_head"), ("bias", Q)]
        head = reader.extras[0].factor
        stored = read_raw(folder / "adapter_model.safetensors")["base_model.model.lm_head.weight"][1]
        assert reader.raw(head) == stored.tobytes()


@pytest.mark.parametrize(
    "name",
    ["lora-r8-qv-python", "lora-patterns-python", "rslora-r16-cheader", "lora-embed-prose", "lora-lmhead-cheader"],
)
def test_trained_adapters_give_the_update_that_peft_computes(name: str) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    folder = require_testbed() / "adapters" / name
    model = transformers.AutoModelForCausalLM.from_pretrained(require_testbed() / "base", dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(model, folder)
    layers = {
        path.removeprefix("base_model.model."): layer
        for path, layer in adapted.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    with open_adapter(folder) as reader:
        assert set(reader.modules) == set(layers)
        for module in reader.modules:
            found = reader.load(module)
            want = layers[module].get_delta_weight("default").double().numpy()
            got = found.scale * (found.b.astype(np.float64) @ found.a.astype(np.float64))
            room = found.scale * (np.abs(found.b).astype(np.float64) @ np.abs(found.a))
            if found.kind == "embedding":
                got, room = got.T, room.T
            # PEFT's product of r terms and its scaling, in float32.
            assert (np.abs(want - got) <= (found.rank + 1) * 2.0**-24 * room).all(), module


def test_base_of_the_config_is_kept(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", pair(Q, out=8, in_=8, r=4, seed=1), base_model_name_or_path="org/base")
    with open_adapter(folder) as reader:
        assert (
            reader.config.base_model
            == json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        )
