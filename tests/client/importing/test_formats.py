"""Conversions of mlx-lm, kohya, diffusers and AdapterHub, against the formulas of the programs that write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lora_contract.adapter.config import parse_config
from lora_contract.adapter.scaling import lora_scale
from lora_contract.errors import RegistryError
from lora_contract.modules import BaseModule, modules_of
from lora_reg.importing.formats import adapterhub, kohya, mlx
from lora_reg.importing.formats.document import Converted
from lora_reg.importing.formats.sgm import to_diffusers
from lora_reg.importing.formats.tensors import Tensor, dump, load
from tests.support.adapters import BASE_ID, check_files, codes, fingerprint_of, make_base
from tests.support.wild import require_wild

Array = npt.NDArray[np.float32]
MLX = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 4, "dropout": 0.0, "scale": 20.0}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def known(base: Path) -> dict[str, BaseModule]:
    return modules_of(fingerprint_of(base)).modules


def tensor(values: Array) -> Tensor:
    return Tensor("F32", values.shape, values.astype("<f4").tobytes())


def values(tensor: Tensor) -> Array:
    return np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def delta(made: Converted, module: str) -> Array:
    """The update that PEFT computes for a module."""
    stem = f"base_model.model.{module}"
    scale = lora_scale(parse_config(made.config_bytes()), module)
    a, b = (values(made.tensors[f"{stem}.lora_{side}.weight"]) for side in "AB")
    return scale * (b @ a).reshape(b.shape[0], -1)


def accepted(made: Converted, base: Path, **options: Any) -> set[str]:
    files = {"adapter_config.json": made.config_bytes(), "adapter_model.safetensors": dump(made.tensors)}
    return codes(check_files(files, fingerprint_of(base), **options))


def mlx_tensors(
    known: dict[str, BaseModule], names: tuple[str, ...] = ("q_proj", "v_proj"), rank: int = 4
) -> dict[str, Tensor]:
    made = {}
    for seed, (path, module) in enumerate(known.items()):
        if path.rpartition(".")[2] in names:
            assert module.in_ and module.out
            made[f"{path}.lora_a"] = tensor(random(module.in_, rank, seed=seed))
            made[f"{path}.lora_b"] = tensor(random(rank, module.out, seed=seed + 1000))
    return made


def test_mlx_updates_are_those_of_mlx(base: Path, known: dict[str, BaseModule]) -> None:
    given = mlx_tensors(known)
    made = mlx.convert(MLX, given, known=known, tied=False, base=BASE_ID)
    assert accepted(made, base) == set()
    assert made.config["target_modules"] == ["q_proj", "v_proj"]
    for name in given:
        if name.endswith(".lora_a"):
            path = name.removesuffix(".lora_a")
            a, b = values(given[f"{path}.lora_a"]), values(given[f"{path}.lora_b"])
            # `fuse` of mlx-lm: (scale * lora_b.T) @ lora_a.T
            np.testing.assert_allclose(delta(made, path), (20.0 * b.T) @ a.T, rtol=1e-5, atol=1e-4)
    again, metadata = load(dump(made.tensors))
    assert (again, metadata) == (made.tensors, {"format": "pt"})


def test_mlx_of_the_last_layers_names_its_modules(base: Path, known: dict[str, BaseModule]) -> None:
    given = {name: item for name, item in mlx_tensors(known).items() if ".layers.1." in name}
    made = mlx.convert(MLX | {"num_layers": 1}, given, known=known, tied=False, base=BASE_ID)
    assert made.config["target_modules"] == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    assert accepted(made, base) == set()


def test_mlx_dora_keeps_its_magnitude(base: Path, known: dict[str, BaseModule]) -> None:
    given = mlx_tensors(known)
    for path in {name.rpartition(".")[0] for name in given}:
        given[f"{path}.m"] = tensor(np.abs(random(known[path].out or 0)))
    made = mlx.convert(MLX | {"fine_tune_type": "dora"}, given, known=known, tied=False, base=BASE_ID)
    assert made.config["use_dora"] is True
    name = "model.layers.0.self_attn.q_proj"
    assert made.tensors[f"base_model.model.{name}.lora_magnitude_vector"].data == given[f"{name}.m"].data
    assert accepted(made, base) == set()


@pytest.mark.parametrize(
    ("parameters", "more", "scale"),
    [
        ({"rank": 4, "scale": 20.0}, {}, 20.0),
        ({"rank": 4, "alpha": 4, "scale": 20.0}, {}, 20.0),
        ({"rank": 4, "alpha": 16, "scale": 10.0}, {"lora_layers": 16}, 40.0),
        ({"rank": 4, "scale": 0.1}, {}, 0.1),
    ],
)
def test_mlx_scales(
    known: dict[str, BaseModule], parameters: dict[str, Any], more: dict[str, Any], scale: float
) -> None:
    made = mlx.convert(
        MLX | {"lora_parameters": parameters} | more, mlx_tensors(known), known=known, tied=False, base="b"
    )
    assert lora_scale(parse_config(made.config_bytes()), "model.layers.0.self_attn.q_proj") == scale


@pytest.mark.parametrize(
    ("config", "spoil", "reason"),
    [
        ({"fine_tune_type": "full"}, {}, "whole weights"),
        ({"lora_parameters": {"rank": 4, "alpha": 16, "scale": 10.0}}, {}, "some releases of mlx-lm"),
        ({"lora_parameters": {"rank": 4}}, {}, "no lora_parameters.scale"),
        ({"fine_tune_type": "dora"}, {}, "no magnitude m"),
        ({}, {"model.layers.0.self_attn.q_proj.weight": (4, 4)}, "none of lora_a"),
        ({}, {"model.layers.0.mlp.switch_mlp.up_proj.lora_a": (2, 4, 8), "model.layers.0.mlp.switch_mlp.up_proj.lora_b": (2, 8, 4)}, "experts"),
        ({}, {"model.layers.0.self_attn.q_proj.lora_a": (32, 5)}, "expected \\(in, r\\)"),
    ],
)  # fmt: skip
def test_what_mlx_has_and_peft_has_not_is_refused(
    known: dict[str, BaseModule], config: dict[str, Any], spoil: dict[str, tuple[int, ...]], reason: str
) -> None:
    given = mlx_tensors(known) | {name: tensor(random(*shape)) for name, shape in spoil.items()}
    with pytest.raises(RegistryError, match=reason) as caught:
        mlx.convert(MLX | config, given, known=known, tied=False, base="b")
    assert caught.value.code == "rejected"


def test_an_embedding_of_mlx_is_converted_only_where_the_output_is_not_tied(
    base: Path, known: dict[str, BaseModule]
) -> None:
    path = "model.embed_tokens"
    module = known[path]
    given = {f"{path}.lora_a": tensor(random(module.out or 0, 4)), f"{path}.lora_b": tensor(random(4, module.in_ or 0))}
    made = mlx.convert(MLX, given, known=known, tied=False, base=BASE_ID)
    a = values(made.tensors[f"base_model.model.{path}.lora_embedding_A"])
    b = values(made.tensors[f"base_model.model.{path}.lora_embedding_B"])
    np.testing.assert_allclose(
        (b @ a).T, values(given[f"{path}.lora_a"]) @ values(given[f"{path}.lora_b"]), rtol=1e-5, atol=1e-5
    )
    assert accepted(made, base) == set()
    with pytest.raises(RegistryError, match="its output layer is adapted too"):
        mlx.convert(MLX, given, known=known, tied=True, base="b")


def test_the_adapter_of_the_wild_is_recognised_and_converted() -> None:
    folder = require_wild("mlx-lm") / "mlx"
    if not folder.exists():
        pytest.skip("needs the shared folder")
    config = json.loads((folder / "adapter_config.json").read_bytes())
    assert mlx.is_mlx(config)
    assert mlx.base_of(config) == "mlx-community/Meta-Llama-3.1-8B-Instruct-4bit"
    given, _ = load((folder / "adapters.safetensors").read_bytes())
    made = mlx.convert(config, given, known={}, tied=False, base="b")
    assert (made.config["r"], made.config["lora_alpha"]) == (8, 160)
    assert made.tensors["base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"].shape == (16, 8)


def kohya_names(known: dict[str, BaseModule]) -> list[str]:
    return [path for path in known if path.rpartition(".")[2] in ("q_proj", "up_proj")]


def factors(known: dict[str, BaseModule], path: str, rank: int) -> tuple[Tensor, Tensor]:
    module = known[path]
    seed = sum(path.encode())
    return tensor(random(rank, module.in_ or 0, seed=seed)), tensor(random(module.out or 0, rank, seed=seed + 1))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        ),
        ("input_blocks_8_1_proj_in", "down_blocks_2_attentions_1_proj_in"),
        ("input_blocks_2_0_in_layers_2", "down_blocks_0_resnets_1_conv1"),
        ("input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv"),
        ("middle_block_1_transformer_blocks_9_ff_net_2", "mid_block_attentions_0_transformer_blocks_9_ff_net_2"),
        ("middle_block_2_emb_layers_1", "mid_block_resnets_1_time_emb_proj"),
        ("output_blocks_5_1_proj_out", "up_blocks_1_attentions_2_proj_out"),
        ("output_blocks_2_2_conv", "up_blocks_0_upsamplers_0_conv"),
        ("output_blocks_8_0_skip_connection", "up_blocks_2_resnets_2_conv_shortcut"),
        ("input_blocks_0_0", None),
        ("down_blocks_1_attentions_0_proj_in", None),
    ],
)
def test_names_of_the_original_stable_diffusion_code(path: str, expected: str | None) -> None:
    """Places of SDXL's U-Net as in `_maybe_map_sgm_blocks_to_diffusers` of diffusers, with two layers in a block."""
    assert to_diffusers(path, 2) == expected


@pytest.mark.parametrize("alphas", [True, False])
def test_kohya_names_and_alphas(base: Path, known: dict[str, BaseModule], alphas: bool) -> None:
    given: dict[str, Tensor] = {}
    for index, path in enumerate(kohya_names(known)):
        stem, rank = f"lora_te_{path.replace('.', '_')}", 4 if index else 8
        given[f"{stem}.lora_down.weight"], given[f"{stem}.lora_up.weight"] = factors(known, path, rank)
        if alphas:
            given[f"{stem}.alpha"] = Tensor("BF16", (), np.float32(1.5 if index else 2.0).tobytes()[2:])
    assert kohya.is_diffusion(given)
    assert kohya.components(given) == ["text_encoder"]
    assert kohya.fits("text_encoder", given, known, None)
    made = kohya.convert("text_encoder", given, {}, known=known, layers=None, base=BASE_ID)
    for index, path in enumerate(kohya_names(known)):
        stem, rank = f"lora_te_{path.replace('.', '_')}", 4 if index else 8
        alpha = (1.5 if index else 2.0) if alphas else rank
        up, down = values(given[f"{stem}.lora_up.weight"]), values(given[f"{stem}.lora_down.weight"])
        np.testing.assert_allclose(delta(made, path), (alpha / rank) * (up @ down), rtol=1e-5, atol=1e-5)
    assert accepted(made, base) == set()


@pytest.mark.parametrize(
    ("down", "up"), [("lora.down", "lora.up"), ("lora_A", "lora_B"), ("lora_linear_layer.down", "lora_linear_layer.up")]
)
def test_diffusers_names(base: Path, known: dict[str, BaseModule], down: str, up: str) -> None:
    given: dict[str, Tensor] = {}
    for path in kohya_names(known):
        given[f"unet.{path}.{down}.weight"], given[f"unet.{path}.{up}.weight"] = factors(known, path, 4)
    stated = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 6})}
    for metadata, scale in (({}, 1.0), (stated, 1.5)):
        made = kohya.convert("unet", given, metadata, known=known, layers=None, base=BASE_ID)
        assert lora_scale(parse_config(made.config_bytes()), kohya_names(known)[0]) == scale
        assert accepted(made, base) == set()


def test_names_of_old_attention_processors() -> None:
    module = BaseModule("x", "linear", 8, 8, False, None)
    paths = {f"down.attn1.{name}": module for name in ("to_q", "to_out.0")}
    given = {
        f"unet.down.attn1.processor.{name}_lora.{side}.weight": tensor(random(*shape))
        for name in ("to_q", "to_out")
        for side, shape in (("down", (2, 8)), ("up", (8, 2)))
    }
    made = kohya.convert("unet", given, {}, known=paths, layers=2, base="b")
    assert sorted({name.partition(".lora_")[0] for name in made.tensors}) == [
        "base_model.model.down.attn1.to_out.0",
        "base_model.model.down.attn1.to_q",
    ]


def test_parts_of_one_file_are_told_apart() -> None:
    names = [
        "lora_te1_text_model_q.lora_down.weight",
        "lora_unet_down_q.alpha",
        "lora_te2_text_model_q.lora_up.weight",
    ]
    assert kohya.components(names) == ["unet", "text_encoder", "text_encoder_2"]
    assert not kohya.is_diffusion([*names, "model.layers.0.weight"])
    assert not kohya.is_diffusion([])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lora_unet_a_b.dora_scale", "DoRA"),
        ("lora_unet_a_b.lora_mid.weight", "Tucker"),
        ("lora_unet_a_b.hada_w1_a", "LoHa"),
        ("lora_unet_a_b.lora_down.weight", "may mean several modules"),
        ("lora_unet_input_blocks_1.lora_down.weight", "has no module"),
        ("unet.a.c.lora_A.weight", "only one of its two factors"),
    ],
)
def test_what_cannot_be_exact_is_refused_with_the_reason(name: str, reason: str) -> None:
    module = BaseModule("x", "linear", 8, 8, False, None)
    paths = {"a.b": module, "a_b": module, "a.c": module}
    with pytest.raises(RegistryError, match=reason):
        kohya.convert("unet", {name: tensor(random(2, 8))}, {}, known=paths, layers=2, base="b")


ADAPTERHUB = {
    "config": {"architecture": "lora", "r": 4, "alpha": 8, "composition_mode": "add", "use_gating": False},
    "model_class": "LlamaAdapterModel",
    "model_name": "acme/llama",
    "name": "task",
    "version": "adapters.1.2.0",
}


@pytest.mark.parametrize("prefix", ["", "lacking"])
def test_adapterhub_lora(base: Path, known: dict[str, BaseModule], prefix: str) -> None:
    given: dict[str, Tensor] = {"heads.task.1.weight": tensor(random(2, 2))}
    for path in kohya_names(known):
        stem = f"{path.partition('.')[2] if prefix else path}.loras.task"
        given[f"{stem}.lora_A"], given[f"{stem}.lora_B"] = factors(known, path, 4)
    assert adapterhub.is_adapterhub(ADAPTERHUB)
    made = adapterhub.convert(ADAPTERHUB, given, known=known, base=BASE_ID)
    assert made.notes
    assert accepted(made, base) == set()
    path = kohya_names(known)[0]
    a, b = factors(known, path, 4)
    np.testing.assert_allclose(delta(made, path), 2.0 * values(b) @ values(a), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ({"architecture": None}, "bottleneck"),
        ({"architecture": "prefix_tuning"}, "prefix_tuning"),
        ({"composition_mode": "scale"}, "composition_mode"),
        ({"use_gating": True}, "gate"),
        ({"r": 2}, "several projections share a module"),
    ],
)
def test_methods_of_adapterhub_that_peft_has_not(
    known: dict[str, BaseModule], method: dict[str, Any], reason: str
) -> None:
    path = kohya_names(known)[0]
    a, b = factors(known, path, 4)
    config = ADAPTERHUB | {"config": ADAPTERHUB["config"] | method}  # type: ignore[operator]
    with pytest.raises(RegistryError, match=reason):
        adapterhub.convert(
            config, {f"{path}.loras.task.lora_A": a, f"{path}.loras.task.lora_B": b}, known=known, base="b"
        )


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "U8"])
def test_transposed(dtype: str) -> None:
    kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "U8": "u1"}[dtype]
    for rows, columns in ((3, 5), (5, 3), (1, 4), (4, 1), (0, 3)):
        given = (random(rows, columns) * 100).astype(kind)
        turned = Tensor(dtype, given.shape, given.tobytes()).transposed()
        assert turned.shape == (columns, rows)
        assert turned.data == np.ascontiguousarray(given.T).tobytes()
