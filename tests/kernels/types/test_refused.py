"""Types that cannot be merged, and files of mergeable types that do not hold what they must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_contract.adapter.types import TYPES
from lora_contract.errors import RegistryError
from lora_kernels.merging import merge_folder
from lora_kernels.types.refused import REASONS
from lora_kernels.types.table import ROOMS
from tests.kernels.checkpoints import Tensors, matrix, write_adapter, write_base, write_safetensors

P = "model.layers.0.proj"
OUT, IN = 24, 12


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tensors: dict[str, Any] = {
        f"{P}.weight": ("BF16", matrix(OUT, IN, seed=1)),
        "model.norm.weight": ("BF16", matrix(IN, seed=2)),
        "wide.weight": ("BF16", matrix(2, 2100, seed=4)),
        "features.conv.weight": ("BF16", matrix(OUT, IN, 3, seed=3)),
    }
    return write_base(tmp_path / "base", [tensors])


def f32(*shape: int) -> tuple[str, Any]:
    return ("F32", matrix(*shape, seed=sum(shape)))


def i32(*values: Any) -> tuple[str, Any]:
    return ("I64", np.array(values, np.int64))


def test_every_type_has_a_matcher_or_a_reason() -> None:
    assert set(ROOMS) | set(REASONS) == set(TYPES)
    assert not set(ROOMS) & set(REASONS)
    # What the registry says of a type while it checks a push must not contradict the merge.
    assert not {name for name, kind in TYPES.items() if not kind.mergeable} & set(ROOMS)


@pytest.mark.parametrize("peft_type", sorted(REASONS))
def test_the_reason_is_told(base: Path, tmp_path: Path, peft_type: str) -> None:
    adapter = write_adapter(tmp_path / "adapter", {"prompt_embeddings": f32(4, 8)}, peft_type=peft_type)
    with pytest.raises(RegistryError) as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "unsupported"
    sentence = str(caught.value)
    assert f"Merging {peft_type} is not possible: {REASONS[peft_type]}." in sentence
    assert "stored, served and validated" in sentence
    assert not (tmp_path / "out").exists()


HADA = {f"hada_w{half}_{side}": f32(*size) for half in "12" for side, size in (("a", (OUT, 4)), ("b", (4, IN)))}
VERA = {"vera_lambda_b": f32(OUT), "vera_lambda_d": f32(4)}
SHIRA = {"shira_weight": f32(2), "shira_indices": i32([0, 23], [0, 11])}

# Type, tensors of the module (those with a dot: of the whole model; with a dash: of another module), config, what the
# error must name.
HOSTILE: list[tuple[str, Tensors, dict[str, Any], str]] = [
    ("ADALORA", {"lora_A": f32(4, IN), "lora_B": f32(OUT, 4)}, {}, "no matching lora_E"),
    ("ADALORA", {"lora_A": f32(4, IN), "lora_B": f32(OUT, 3), "lora_E": f32(4, 1)}, {}, "lora_B has the shape 24 x 3"),
    ("ADALORA", {"lora_A": f32(4), "lora_B": f32(OUT, 4), "lora_E": f32(4, 1)}, {}, "lora_A has the shape 4"),
    ("LOHA", {name: HADA[name] for name in list(HADA)[:3]}, {}, "no matching hada_w2_b"),
    ("LOHA", {**HADA, "hada_w1_b": f32(4, IN + 1)}, {}, "hada_w1_b has the shape 4 x 13"),
    ("LOHA", {**HADA, "hada_t1": f32(4, 4, 3, 1)}, {}, "no matching hada_t2"),
    ("LOHA", {**HADA, "hada_t1": f32(4, 4, 3, 1), "hada_t2": f32(4, 4, 3, 1)}, {}, "belongs to a convolution"),
    ("LOKR", {"lokr_w1": f32(4, 3)}, {}, "no matching lokr_w2_a"),
    ("LOKR", {"lokr_w1": f32(5, 3), "lokr_w2": f32(6, 4)}, {}, "give an update of 30 x 12"),
    ("LOKR", {"lokr_w1": f32(4, 3), "lokr_w2": f32(6, 4, 1)}, {}, "lokr_w2 has the shape 6 x 4 x 1"),
    ("LOKR", {"lokr_w1": f32(0, 3), "lokr_w2": f32(6, 4)}, {}, "lokr_w1 has the shape 0 x 3"),
    ("LOKR", {"lokr_w1": f32(4, 3), "lokr_w2_a": f32(6, 2), "lokr_w2_b": f32(3, 4)}, {}, "lokr_w2_a has the shape 6 x 2"),
    ("IA3", {"ia3_l": f32(IN, 1)}, {"feedforward_modules": []}, "ia3_l has the shape 12 x 1"),
    ("IA3", {"ia3_l": f32(OUT, 1)}, {"feedforward_modules": ["proj"]}, "feedforward"),
    ("VERA", VERA, {"save_projection": True}, "save_projection"),
    ("VERA", VERA, {"save_projection": False, "projection_prng_key": "1"}, "has no seed"),
    ("VERA", {"vera_lambda_b": f32(OUT), "vera_lambda_d": f32(65536), "-wide.vera_lambda_b": f32(2), "-wide.vera_lambda_d": f32(65536)}, {"r": 65536, "save_projection": False, "projection_prng_key": 1}, "not in the file"),
    ("VERA", {**VERA, ".vera_A": f32(4, IN)}, {}, "no matching vera_B"),
    ("VERA", {**VERA, ".vera_A": f32(4, IN - 1), ".vera_B": f32(OUT, 4)}, {}, "vera_A has the shape 4 x 11"),
    ("VERA", {**VERA, ".vera_A": f32(5, IN), ".vera_B": f32(OUT, 4)}, {}, "vera_A has the shape 5 x 12"),
    ("VERA", {**VERA, ".vera_A": f32(4), ".vera_B": f32(OUT, 4)}, {}, "vera_A has the shape 4;"),
    ("OFT", {"oft_R.weight": f32(3, 7)}, {}, "oft_R.weight has the shape 3 x 7"),
    ("OFT", {"oft_R.weight": f32(2, 6)}, {}, "oft_R.weight has the shape 2 x 6"),
    ("OFT", {"oft_R.weight": f32(3, 6)}, {"block_share": True}, "one shared block"),
    ("OFT", {"oft_R.weight": f32(1, 45)}, {"block_share": True}, "does not match one shared block for the 12 inputs"),
    ("OFT", {"oft_R.weight": f32(3, 6)}, {"use_cayley_neumann": True}, "of PEFT before 0.18"),
    ("OFT", {"oft_R.weight": f32(3, 6)}, {"use_cayley_neumann": True, "peft_version": "0.17.1@abc"}, "of PEFT before 0.18"),
    ("OFT", {"oft_R.weight": f32(3, 6)}, {}, "of PEFT before 0.18"),
    ("OFT", {"oft_R.weight": f32(3, 6)}, {"peft_version": "0.21.2", "num_cayley_neumann_terms": 10**9}, "num_cayley_neumann_terms"),
    ("OFT", {"oft_r": f32(3, 4, 4)}, {}, "before version 0.16"),
    ("BOFT", {"boft_R": f32(1, 3, 4, 4)}, {}, "no matching boft_s"),
    ("BOFT", {"boft_R": f32(1, 3, 5, 5), "boft_s": f32(OUT, 1)}, {}, "boft_R has the shape 1 x 3 x 5 x 5"),
    ("BOFT", {"boft_R": f32(2, 3, 4, 4), "boft_s": f32(OUT, 1)}, {}, "2 butterfly factors"),
    ("BOFT", {"boft_R": f32(40, 3, 4, 4), "boft_s": f32(OUT, 1)}, {}, "40 butterfly factors"),
    ("BOFT", {"boft_R": f32(1, 3, 4, 4), "boft_s": f32(OUT)}, {}, "boft_s has the shape 24"),
    ("HRA", {"hra_u": f32(OUT, 4)}, {}, "hra_u has the shape 24 x 4"),
    ("HRA", {"hra_u": ("F32", np.zeros((IN, 4)))}, {}, "column 0 is zero"),
    ("HIRA", {"hira_A": f32(4, IN)}, {}, "no matching hira_B"),
    ("HIRA", {"hira_A": f32(4, IN), "hira_B": f32(OUT, 5)}, {}, "hira_B has the shape 24 x 5"),
    ("MISS", {"miss_block": f32(4, IN)}, {}, "miss_block has the shape 4 x 12"),
    ("MISS", {"miss_block": f32(5, 4, 4)}, {"init_weights": "bat"}, "miss_block has the shape 5 x 4 x 4"),
    ("MISS", {"miss_block": f32(6, 5, 5)}, {"init_weights": "bat", "r": 5}, "do not divide"),
    ("MISS", {"miss_block": f32(4, 5)}, {"init_weights": "mini", "mini_r": 5}, "mini_r = 5"),
    ("MISS", {"miss_block": f32(4, 5)}, {"init_weights": "mini", "mini_r": 0}, "mini_r = 0"),
    ("ROAD", {"road_theta": f32(12)}, {"variant": "road_1", "group_size": 8}, "no matching road_alpha"),
    ("ROAD", {"road_theta": f32(12), "road_alpha": f32(12)}, {"variant": "road_1", "group_size": 10}, "group_size = 10"),
    ("ROAD", {"road_theta": f32(12), "road_alpha": f32(24)}, {"variant": "road_1", "group_size": 8}, "road_alpha has the shape 24"),
    ("ROAD", {"road_theta": f32(12), "road_alpha": f32(12)}, {"variant": "road_3", "group_size": 8}, "road_3"),
    ("DELORA", {"delora_A": f32(4, IN), "delora_B": f32(OUT, 4), "delora_lambda": f32(1)}, {}, "no matching delora_w_norm"),
    ("C3A", {"c3a_kernel": f32(4, 2, 5)}, {}, "c3a_kernel has the shape 4 x 2 x 5"),
    ("C3A", {"c3a_kernel": f32(4, 2, 0)}, {}, "c3a_kernel has the shape 4 x 2 x 0"),
    ("FOURIERFT", {"fourierft_spectrum": f32(OUT * IN + 1)}, {}, "expected 1 to 288"),
    ("FOURIERFT", {"fourierft_spectrum": f32(3)}, {"random_loc_seed": None}, "random_loc_seed"),
    ("WAVEFT", {"waveft_spectrum": f32(3)}, {"wavelet_family": "sym5"}, "sym5"),
    ("SHIRA", {"shira_weight": f32(2)}, {}, "no matching shira_indices"),
    ("SHIRA", {**SHIRA, "shira_weight": f32(3)}, {}, "shira_indices has the shape 2 x 2"),
    ("SHIRA", {**SHIRA, "shira_indices": i32([0, 24], [0, 11])}, {}, "has the index 24, expected 0 to 23"),
    ("SHIRA", {**SHIRA, "shira_indices": i32([0, 23], [0, -1])}, {}, "has the index -1, expected 0 to 11"),
    ("SHIRA", {**SHIRA, "shira_indices": f32(2, 2)}, {}, "shira_indices has the dtype F32"),
    ("SUPERTUNING", {"supertuning_values": f32(3)}, {}, "save_precomputed_indices"),
    ("SUPERTUNING", {"supertuning_values": f32(1), "supertuning_indices": i32(288)}, {}, "has the index 288"),
    ("GRALORA", {"gralora_A": f32(5, 2, 5), "gralora_B": f32(5, 5, 4)}, {"r": 5}, "number of blocks must divide"),
    ("GRALORA", {"gralora_A": f32(2, 6, 4), "gralora_B": f32(2, 4, 11)}, {}, "gralora_B has the shape 2 x 4 x 11"),
    ("RANDLORA", {"randlora_lambda": f32(4, 3), "randlora_gamma": f32(3, IN)}, {}, "save_projection=True"),
    ("RANDLORA", {"randlora_lambda": f32(4, 3), "randlora_gamma": f32(3, IN), ".randlora_A": f32(4, 1, 9), ".randlora_B": f32(OUT, 3, 4)}, {}, "randlora_A has the shape 4 x 1 x 9"),
    ("VBLORA", {"vblora_logits_A": f32(4, 3, 5), "vblora_logits_B": f32(6, 4, 5)}, {}, "no matching vblora_vector_bank"),
    ("VBLORA", {"vblora_logits_A": f32(4, 3, 5), ".vblora_vector_bank": f32(5, 4)}, {}, "no matching vblora_logits_B_topk_weights"),
    ("VBLORA", {"vblora_logits_A": f32(4, 3, 5), ".vblora_vector_bank": f32(5, 7)}, {}, "vblora_vector_bank has the shape 5 x 7"),
    ("VBLORA", {"vblora_logits_A": f32(4, 3, 5), ".vblora_vector_bank": f32(5, 4)}, {"topk": 6}, "topk = 6"),
    ("UNILORA", {".unilora_theta_d": f32(9)}, {}, "save_indices=True"),
    ("UNILORA", {".unilora_theta_d": f32(9), "unilora_indices_A": i32(*[[9] * IN] * 4), "unilora_scales_A": f32(4, IN), "unilora_indices_B": i32(*[[0] * 4] * OUT), "unilora_scales_B": f32(OUT, 4)}, {}, "has the index 9, expected 0 to 8"),
    ("TINYLORA", {"tinylora_A": f32(2, IN), "tinylora_B": f32(OUT, 2), "tinylora_P": f32(3, 2, 2), ".tinylora_v.0": f32(3), ".tinylora_v.1": f32(3)}, {}, "2 vectors tinylora_v"),
    ("TINYLORA", {"tinylora_A": f32(2, IN), "tinylora_B": f32(OUT, 2), ".tinylora_v.0": f32(3)}, {}, "no tinylora_P"),
    ("DEFT", {"deft_P": f32(OUT, 4)}, {"decomposition_method": "qr"}, "no matching deft_R"),
    ("DEFT", {"deft_P": f32(OUT, 4)}, {"decomposition_method": "lu"}, "'lu'"),
    ("PEANUT", {"peanut_A.weight": f32(4, OUT), "peanut_B.weight": f32(OUT, 4)}, {"depth": 10**9}, "depth = 1000000000"),
    ("PEANUT", {"peanut_A.weight": f32(4, OUT), "peanut_B.weight": f32(OUT, 4)}, {"act_fn": "mish"}, "mish"),
    ("GLORA", {"glora_A.Xd": f32(OUT, 4)}, {}, "no matching glora_A.Xu"),
    ("GLORA", {"glora_A.X": f32(OUT)}, {}, "glora_A.X has the shape 24"),
    ("GLORA", {"glora_D.X": f32(OUT)}, {}, "which the base does not have"),
    ("BEFT", {"beft_bias": f32(1, OUT)}, {}, "Merging BEFT on a layer without a bias in the base is not supported"),
    ("GLORA", {"glora_A.zeros": f32(OUT, IN)}, {}, "but is not zero"),
    ("LOKR", {"lokr_w1": f32(4, 3), "lokr_w2": f32(6, 4), "lokr_w1_a": f32(4, 2)}, {}, "lokr_w1_a is not used"),
    ("SUPERTUNING", {"supertuning_values": f32(1), "supertuning_indices": i32(2), "supertuning_other": f32(1)}, {}, "supertuning_other"),
    ("OFT", {"oft_R.weight": f32(3, 6), "oft_embedding_R.weight": f32(3, 6)}, {}, "OFT on a module of kind linear"),
    ("VBLORA", {"vblora_logits_A": f32(4, 3, 5), "vblora_logits_B": f32(6, 4, 5), ".vblora_vector_bank": f32(5, 4), "vblora_logits_B_topk_weights": f32(6, 4, 1)}, {}, "vblora_logits_B_topk_weights is not used"),
    ("GLORA", {"glora_C.X": f32(IN, 1)}, {}, "config_C"),
    ("LN_TUNING", {"-model.norm.ln_tuning_layers.weight": f32(IN + 1)}, {}, "ln_tuning_layers.weight has the shape 13"),
    ("LN_TUNING", {"-model.norm.ln_tuning_layers.bias": f32(IN)}, {}, "replaces model.norm.bias, which the base does not have"),
    ("LOHA", {"-features.conv.hada_w1_a": f32(4, OUT), "-features.conv.hada_w1_b": f32(4, IN), "-features.conv.hada_t1": f32(4, 4, 5, 1), "-features.conv.hada_w2_a": f32(4, OUT), "-features.conv.hada_w2_b": f32(4, IN), "-features.conv.hada_t2": f32(4, 4, 3, 1)}, {}, "hada_t1 has the shape 4 x 4 x 5 x 1"),
    ("C3A", {"-features.conv.c3a_kernel": f32(4, 2, 6)}, {}, "C3A on a module of kind conv"),
    ("MISS", {"base_layer.miss_block": f32(4, OUT)}, {}, "on top of another adapter"),
    ("HRA", {"-model.layers.7.proj.hra_u": f32(IN, 4)}, {}, "which the base does not have"),
    ("POLY", {"poly_lora_A": f32(1, 2, IN, 4), "poly_lora_B": f32(1, 2, 4, OUT)}, {}, "no matching poly_router.module_logits"),
    ("POLY", {"poly_lora_A": f32(1, 2, IN, 4), "poly_lora_B": f32(1, 2, 4, OUT), "poly_router.module_logits": f32(3, 2)}, {"n_tasks": 3}, "POLY with n_tasks = 3"),
    ("POLY", {"poly_lora_A": f32(5, 2, 2, 4), "poly_lora_B": f32(5, 2, 4, 4), "poly_router.module_logits": f32(1, 10)}, {}, "poly_lora_A has the shape 5 x 2 x 2 x 4"),
    ("POLY", {"poly_lora_A": f32(2, 2, 6, 4), "poly_lora_B": f32(2, 2, 4, 12), "poly_router.module_logits": f32(1, 3)}, {}, "module_logits has the shape 1 x 3"),
]  # fmt: skip


@pytest.mark.parametrize(("peft_type", "tensors", "config", "words"), HOSTILE)
def test_what_does_not_fit_is_refused_by_name(
    base: Path, tmp_path: Path, peft_type: str, tensors: Tensors, config: dict[str, Any], words: str
) -> None:
    adapter = write_adapter(tmp_path / "adapter", {}, **{"peft_type": peft_type, "r": 4, **config})
    write_safetensors(adapter / "adapter_model.safetensors", {_name(name): value for name, value in tensors.items()})
    with pytest.raises(RegistryError) as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code in ("rejected", "unsupported")
    assert words in f"{caught.value.detail} {caught.value.hint}"
    assert not (tmp_path / "out").exists()


def _name(name: str) -> str:
    if name.startswith("."):
        return f"base_model{name}"
    return f"base_model.model.{name[1:] if name.startswith('-') else f'{P}.{name}'}"
