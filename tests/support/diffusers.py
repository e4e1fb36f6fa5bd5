"""diffusers itself, and tiny pipelines of random weights made with it.

Nothing of ours needs it, so it is in none of our extras: the tests take it from an environment of its own, which holds
nothing else; torch, transformers and PEFT are those of the tests.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from tests.support.envs import ensure_env

REQUIREMENTS = ["--no-deps", "diffusers==0.42.1", "importlib_metadata==10.2.0", "zipp==4.1.2"]
WORDS = ("<|startoftext|>", "<|endoftext|>", "a", "b", "c", "a</w>", "b</w>", "c</w>")


def load() -> Any:
    """Import diffusers. Raises RuntimeError where it cannot be installed."""
    if "diffusers" not in sys.modules:
        found = ensure_env("diffusers-0.42.1", REQUIREMENTS).parent
        # Behind everything else: what the tests' own environment has comes first.
        sys.path.append(str(next((found / "lib").glob("python3.*/site-packages"))))
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers

    return diffusers


def unet(**options: Any) -> Any:
    """A U-Net of Stable Diffusion, with attention, ResNet blocks, up and down samplers."""
    sizes = {"block_out_channels": (4, 8), "layers_per_block": 1, "sample_size": 8, "cross_attention_dim": 8}
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return (
        load()
        .UNet2DConditionModel(**{**sizes, **blocks, "norm_num_groups": 2, "attention_head_dim": 2, **options})
        .eval()
    )


def flux() -> Any:
    """The transformer of a Flux pipeline."""
    return (
        load()
        .FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            axes_dims_rope=(2, 2, 4),
        )
        .eval()
    )


def sd3() -> Any:
    """The transformer of a pipeline of Stable Diffusion 3."""
    return (
        load()
        .SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            num_layers=2,
            attention_head_dim=4,
            num_attention_heads=2,
            joint_attention_dim=8,
            caption_projection_dim=8,
            pooled_projection_dim=8,
            out_channels=4,
            pos_embed_max_size=8,
        )
        .eval()
    )


def text_encoder(*, projection: bool = False, width: int = 8) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=12,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=len(WORDS),
        max_position_embeddings=16,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def vae() -> Any:
    return (
        load()
        .AutoencoderKL(
            block_out_channels=(4,),
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            latent_channels=4,
            norm_num_groups=2,
            layers_per_block=1,
            sample_size=8,
        )
        .eval()
    )


def seeded(make: Callable[[], Any], seed: int = 0) -> Any:
    """A model with random weights that are not all near zero."""
    import torch

    torch.default_generator.manual_seed(seed)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return model


def stable_diffusion(folder: Path, work: Path) -> Any:
    """Save a pipeline of Stable Diffusion to a folder, and return it."""
    library = load()
    pipeline = library.StableDiffusionPipeline(
        vae=seeded(vae, 1),
        text_encoder=seeded(text_encoder, 2),
        tokenizer=tokenizer(work / "tokenizer"),
        unet=seeded(unet, 3),
        scheduler=library.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return pipeline


def stable_diffusion_xl(folder: Path, work: Path) -> Any:
    """Save a pipeline of Stable Diffusion XL to a folder, and return it."""
    library = load()
    wide: dict[str, Any] = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "cross_attention_dim": 20}
    wide |= {"projection_class_embeddings_input_dim": 36, "use_linear_projection": True}
    pipeline = library.StableDiffusionXLPipeline(
        vae=seeded(vae, 1),
        text_encoder=seeded(text_encoder, 2),
        text_encoder_2=seeded(lambda: text_encoder(projection=True, width=12), 4),
        tokenizer=tokenizer(work / "tokenizer"),
        tokenizer_2=tokenizer(work / "tokenizer_2"),
        unet=seeded(lambda: unet(**wide), 3),
        scheduler=library.EulerDiscreteScheduler(),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def flux_pipeline(folder: Path, work: Path) -> Any:
    """Save a pipeline of Flux to a folder, without its second text encoder, and return it."""
    library = load()
    pipeline = library.FluxPipeline(
        vae=seeded(vae, 1),
        text_encoder=seeded(text_encoder, 2),
        tokenizer=tokenizer(work / "tokenizer"),
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=seeded(flux, 3),
        scheduler=library.FlowMatchEulerDiscreteScheduler(),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def adapted(model: Any, targets: Collection[str], seed: int = 5, **options: Any) -> Any:
    """A model with a LoRA of PEFT, whose factors are random."""
    import torch
    from peft import LoraConfig, get_peft_model

    made = get_peft_model(model, LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": list(targets), **options}))
    torch.default_generator.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    return made.eval()


def factors(model: Any) -> dict[str, Any]:
    """The tensors of a PEFT model's adapter, by the paths of the model itself."""
    from peft import get_peft_model_state_dict

    return {name.removeprefix("base_model.model."): value for name, value in get_peft_model_state_dict(model).items()}


def kohya(model: Any, prefix: str, alpha: float) -> dict[str, Any]:
    """The tensors of a PEFT model's adapter as kohya's scripts name them, with another alpha."""
    import torch

    made: dict[str, Any] = {}
    for name, value in factors(model).items():
        path, _, half = name.rpartition(".lora_")
        stem = prefix + path.replace(".", "_")
        made[f"{stem}.lora_{'down' if half.startswith('A') else 'up'}.weight"] = value.contiguous()
        made[f"{stem}.alpha"] = torch.tensor(alpha)
    return made


def difference(one: Any, other: Any) -> float:
    """The largest difference between two models' parameters. Raises AssertionError if their names differ."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)
