"""Small random models with every kind of layer, adapters that PEFT itself saved, and the comparison of their merges."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

from lora_kernels.merging import MergeReport, merge_folder
from tests.kernels.checkpoints import read_model
from tests.support.adapters import base_reader, check_files, fingerprint_of, read_folder
from tests.support.oracle import Bf16Comparison, Float64, Merged, compare_bf16, from_bf16
from tests.support.oracle_lora import merge_lora64, read_adapter64

Adapters = Sequence[tuple[Path, float]]

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
}
TOKENS = torch.tensor([[1, 3, 5, 63, 0, 2, 3, 17, 40, 3]])


class Layers(nn.Module):
    """A layer of each kind that LoRA adapts, none of them square, the embedding and a linear one with odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(67, 48)
        self.attention = nn.MultiheadAttention(48, 4, batch_first=True)
        self.narrow = nn.Linear(48, 37)
        self.wide = nn.Linear(37, 96, bias=False)
        self.even = nn.Linear(96, 64, bias=False)
        self.conv1 = nn.Conv1d(8, 12, 3)
        self.conv2 = nn.Conv2d(8, 12, (3, 5))
        self.point = nn.Conv2d(8, 12, 1, bias=False)
        self.conv3 = nn.Conv3d(4, 6, 2)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed_tokens(tokens)
        hidden, _ = self.attention(hidden, hidden, hidden)
        flat = self.even(self.wide(self.narrow(hidden))).reshape(1, 8, -1)[..., :48]
        outputs = [
            self.conv1(flat),
            self.conv2(flat.reshape(1, 8, 6, 8)),
            self.point(flat.reshape(1, 8, 6, 8)),
            self.conv3(flat.reshape(1, 4, 4, 6, 4)),
        ]
        return torch.cat([output.reshape(1, -1) for output in outputs], dim=1)


def make_layers(folder: Path, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> tuple[Layers, Path]:
    """The model in float32, with values that `dtype` holds, and its checkpoint."""
    torch.manual_seed(seed)
    model = Layers().to(dtype)
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["Layers"], "model_type": "layers", "tie_word_embeddings": False})
    )
    return model.to(torch.float32).eval(), folder


def save_adapter(
    model: nn.Module,
    config: LoraConfig,
    folder: Path,
    *,
    seed: int,
    size: float = 0.1,
    edit: dict[str, Any] | None = None,
) -> Path:
    """Let PEFT make an adapter, give it random values, and let PEFT save it. The model is as it was afterwards.

    edit: keys of adapter_config.json to set afterwards.
    """
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config)
        randomize(adapted, seed=seed, size=size)
        adapted.save_pretrained(str(folder))
        model = adapted.unload()
    model.load_state_dict(before)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **(edit or {})}))
    return folder


def randomize(adapted: nn.Module, *, seed: int, size: float) -> None:
    """Random values for all that is trained; magnitudes stay near the norms that they began with."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(adapted.named_parameters()):
        if not parameter.requires_grad and "lora_" not in name:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        # In place: with ensure_weight_tying, parameters are views of others.
        parameter.data.copy_(parameter.data * (1 + 0.2 * noise) if "magnitude" in name else size * noise)


def peft_merged(model: nn.Module, adapters: Sequence[Path]) -> dict[str, Float64]:
    """What PEFT's own merge of all of them makes of the model, in its dtype. The model is changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(model, str(adapters[0]), adapter_name="a0")
        for index, folder in enumerate(adapters[1:], 1):
            adapted.load_adapter(str(folder), adapter_name=f"a{index}")
        names = [f"a{index}" for index in range(len(adapters))]
        adapted.base_model.set_adapter(names)
        merged = adapted.merge_and_unload(adapter_names=names)
    return {name: value.double().numpy() for name, value in merged.state_dict().items()}


def parameters64(model: nn.Module) -> dict[str, Float64]:
    return {name: value.double().numpy() for name, value in model.state_dict().items()}


def assert_merges(
    tmp_path: Path,
    base: Path,
    parameters: dict[str, Float64],
    adapters: Adapters,
    *,
    load: Callable[[Path], dict[str, Float64]] | None = None,
    **oracle: Any,
) -> tuple[MergeReport, dict[str, Merged]]:
    """A push accepts the adapters; the merge in bf16 is the correctly rounded one but for 1 in 10,000, the one in float32 is within its own error.

    load: the result's parameters by the running model's names; None where the files name them so.
    """
    for folder, _ in adapters:
        checked = check_files(read_folder(folder), fingerprint_of(base), accept_base=True, read_base=base_reader(base))
        assert checked.accepted, checked.findings
    right = merge_lora64(parameters, [read_adapter64(folder, weight) for folder, weight in adapters], **oracle)
    merge_folder(base, adapters, tmp_path / "wide", dtype="float32", min_kept=None)
    wide = (load or _stored)(tmp_path / "wide")
    assert set(wide) == set(parameters)
    for name, values in wide.items():
        expected = right[name].exact if name in right else parameters[name]
        # Storing float32 rounds once more than the arithmetic that the bound is for, at half a unit.
        error = right[name].float32_error if name in right else np.zeros(())
        assert (np.abs(values - expected) <= error + 2.0**-24 * np.abs(expected)).all(), name
    report = merge_folder(base, adapters, tmp_path / "narrow", dtype="bfloat16", min_kept=None)
    narrow = (load or _stored)(tmp_path / "narrow")
    found = _compare(narrow, right)
    assert found.beyond_float32 == 0, {name: compare_bf16(_bits(narrow[name]), part) for name, part in right.items()}
    # Less than 1 in 10,000 where there are so many; by chance two of the few thousand of a small model.
    assert found.differing <= max(2, found.elements / 10_000)
    return report, right


def assert_is_pefts(folder: Path, peft: dict[str, Float64], right: dict[str, Merged], *, times: float = 2) -> None:
    """Both are within float32's own error of the exact merge, so within twice that of each other."""
    for name, values in _stored(folder).items():
        bound = times * right[name].float32_error + 2.0**-23 * np.abs(values) if name in right else 0
        assert (np.abs(values - peft[name]) <= bound).all(), name


def _stored(folder: Path) -> dict[str, Float64]:
    return {
        name: from_bf16(raw) if dtype == "BF16" else raw.astype(np.float64)
        for name, (dtype, raw) in read_model(folder).items()
    }


def _bits(values: Float64) -> Any:
    wide = values.astype(np.float32)
    assert np.array_equal(wide, values)
    return (wide.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def compare_folder(folder: Path, right: dict[str, Merged]) -> Bf16Comparison:
    """A merge in bf16 whose files name the parameters as the running model does, all tensors together."""
    return _compare(_stored(folder), right)


def _compare(got: dict[str, Float64], right: dict[str, Merged]) -> Bf16Comparison:
    parts = [compare_bf16(_bits(got[name]), expected) for name, expected in right.items()]
    ulps: Counter[int] = Counter()
    for part in parts:
        ulps.update(part.ulps)
    return Bf16Comparison(
        elements=sum(part.elements for part in parts),
        ulps=dict(ulps),
        beyond_float32=sum(part.beyond_float32 for part in parts),
    )


def save_model(model: Any, folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Save a transformers model; afterwards it is in float32, with the values that were saved."""
    model.to(dtype).save_pretrained(folder)
    model.to(torch.float32).eval()
    return folder


def loaded(folder: Path) -> dict[str, Float64]:
    """The parameters of a checkpoint as transformers names and joins them."""
    return parameters64(load_model(folder))


def load_model(folder: Path, **options: Any) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def adapted_logits(model: Any, adapter: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Of the model with the adapter beside it, unmerged. The model is changed."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logits: torch.Tensor = PeftModel.from_pretrained(model, str(adapter)).eval()(tokens).logits
    return logits


def assert_same_logits(
    base: Path, adapters: Adapters, out: Path, tokens: torch.Tensor, want: torch.Tensor
) -> MergeReport:
    """The merged model gives what the adapted one gave; in float32, so that only the merge could make a difference."""
    report = merge_folder(base, adapters, out, dtype="float32")
    with torch.no_grad():
        got = load_model(out)(tokens).logits
        plain = load_model(base)(tokens).logits
    assert (got - want).abs().max() < 2e-5 * want.abs().max(), (got - want).abs().max()
    assert (plain - want).abs().max() > 1e-2
    return report
