"""Configs of public adapters: PEFT makes an adapter from each for a tiny model of its family; pushed as a trainer leaves
it, merged, pulled and loaded, the model has the logits of PEFT's own merge.

`python -m tests.architectures.public_configs` runs all of them against a service and prints a table and a count.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from peft import PeftConfig, PeftModel, get_peft_model

from lora_contract.adapter.agreement import read_config
from lora_contract.errors import RegistryError
from lora_contract.heads import class_for
from lora_kernels.merging import merge_folder
from tests.architectures.sweep import example_of, one_line, other_outputs, save
from tests.support import diffusers
from tests.support.adapters import base_reader, check_files, fingerprint_of, read_folder
from tests.support.wild import WILD

BERT, LLAMA = ("BertForPreTraining", "bert"), ("LlamaForCausalLM", "llama")
# A part of the name of the config, and the class and model type of its base.
FAMILIES: Final = (
    ("adalora-bert", BERT),
    ("lora-bert", BERT),
    ("blip", ("BlipForConditionalGeneration", "blip")),
    ("roberta", ("RobertaForMaskedLM", "roberta")),
    ("codebert", ("RobertaForMaskedLM", "roberta")),
    ("cosmos", ("Qwen3VLForConditionalGeneration", "qwen3_vl")),
    ("cyberrealistic", ("CLIPTextModel", "clip_text_model")),
    ("gemma-2", ("Gemma2ForCausalLM", "gemma2")),
    ("gemma-3-270m", ("Gemma3ForCausalLM", "gemma3_text")),
    ("gemma3-270m", ("Gemma3ForCausalLM", "gemma3_text")),
    ("gemma-3-4b", ("Gemma3ForConditionalGeneration", "gemma3")),
    ("gpt-neox", ("GPTNeoXForCausalLM", "gpt_neox")),
    ("mistral", ("MistralForCausalLM", "mistral")),
    ("mt0", ("MT5ForConditionalGeneration", "mt5")),
    ("lora-none", ("CLIPModel", "clip")),
    ("phi-3", ("Phi3ForCausalLM", "phi3")),
    ("qwythos", ("Qwen3VLForConditionalGeneration", "qwen3_vl")),
    ("smolvlm", ("SmolVLMForConditionalGeneration", "smolvlm")),
    ("flan-t5", ("T5ForConditionalGeneration", "t5")),
    ("", LLAMA),
)


class Refused(Exception):
    """The config is refused: the sentence."""


def family(name: str) -> tuple[str, str]:
    return next(found for part, found in FAMILIES if part in name)


def make(config: Path, folder: Path) -> tuple[Any, Any]:
    """Write `folder/base` and `folder/adapter`, as a trainer leaves it. Return the class of the model and the adapted
    one. Raises Refused, and whatever PEFT raises."""
    try:
        read = read_config(config.read_bytes())
    except RegistryError as error:
        raise Refused(error.detail) from error
    if (read.library or "").startswith("diffusers"):
        kind = getattr(diffusers.load(), read.model_class or "")
        diffusers.seeded(diffusers.unet).save_pretrained(folder / "base")
    else:
        base_class, model_type = family(config.name)
        save(getattr(transformers, base_class), model_type, folder / "base")
        kind = getattr(transformers, class_for(read.task_type or "", model_type, base_class) or base_class)
    (folder / "config").mkdir()
    (folder / "config" / "adapter_config.json").write_bytes(config.read_bytes())
    torch.default_generator.manual_seed(4)
    model = kind.from_pretrained(folder / "base", dtype=torch.float32).eval()
    settings = PeftConfig.from_pretrained(folder / "config")
    settings.inference_mode = False
    _fit(settings, model)
    torch.default_generator.manual_seed(1)
    adapted = get_peft_model(copy.deepcopy(model), settings).eval()
    for part, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.normal_(0, 0.1 if "lora_" in part else 0.05)
    adapted.save_pretrained(folder / "adapter")
    (folder / "adapter" / "trainer_state.json").write_text(json.dumps({"global_step": 10, "log_history": []}))
    return kind, adapted


def _fit(settings: Any, model: Any) -> None:
    """Sizes of virtual tokens are those of the tiny model."""
    if settings.is_prompt_learning:
        config = model.config
        settings.token_dim, settings.num_layers = config.d_model, config.num_layers
        settings.num_attention_heads, settings.encoder_hidden_size = config.num_heads, config.d_model


def compared(kind: Any, adapted: Any, folder: Path, merged: Path) -> str:
    """Compare a merged model with PEFT's own merge of the adapter as it was saved."""
    example = example_of(kind.from_pretrained(folder / "base", dtype=torch.float32).eval())
    if example is None:
        return "not compared: no inputs can be made up"
    torch.default_generator.manual_seed(4)
    loaded = kind.from_pretrained(folder / "base", dtype=torch.float32).eval()
    wanted = PeftModel.from_pretrained(loaded, str(folder / "adapter")).merge_and_unload().eval()
    ours = kind.from_pretrained(merged, dtype=torch.float32).eval()
    fault = other_outputs(wanted, ours, *example) or other_outputs(adapted.base_model.model, ours, *example)
    return f"wrong: {fault}" if fault else "equal logits"


def locally(config: Path, folder: Path) -> str:
    """Without a service: the check of a push, and a merge of folders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kind, adapted = make(config, folder)
        except Refused as error:
            return f"refused: {error}"
        base, adapter = folder / "base", folder / "adapter"
        found = check_files(read_folder(adapter), fingerprint_of(base), accept_base=True, read_base=base_reader(base))
        if not found.accepted:
            return f"push refused: {found.findings[0].message}"
        try:
            merge_folder(base, [(adapter, 1.0)], folder / "merged", min_kept=None)
        except RegistryError as error:
            return f"merge refused: {error.detail}"
        return compared(kind, adapted, folder, folder / "merged")


def by_service(home: Any, config: Path, folder: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kind, adapted = make(config, folder)
        except Refused as error:
            return f"refused: {error}"
        name = config.stem.replace(".", "-")
        for command in (
            ("base", "add", f"bases/{name}", folder / "base"),
            ("push", folder / "adapter", f"wild/{name}", "--base", f"bases/{name}", "--accept-base"),
            ("merge", f"wild/{name}", "--to", f"merged/{name}"),
            ("pull", f"merged/{name}", "-o", folder / "merged"),
        ):
            done = home.run(*command)
            if done.status:
                return f"{command[0]} refused: {' '.join(done.err.split())[:200]}"
        return compared(kind, adapted, folder, folder / "merged")


def main() -> None:
    from tests.support import service
    from tests.support.command import Home

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as text:
        root = Path(text)
        with service.in_process(root / "data") as running, service.worker(running, root / "worker.log"):
            home = Home(root / "home", running.url)
            for config in sorted(WILD.glob("configs/*.json")):
                if sys.argv[1:] and config.stem not in sys.argv[1:]:
                    continue
                (root / config.stem).mkdir()
                try:
                    outcome = by_service(home, config, root / config.stem)
                except Exception as error:
                    outcome = f"PEFT: {type(error).__name__}: {one_line(error)}"
                counts[outcome.partition(":")[0]] += 1
                read = json.loads(config.read_bytes()).get("auto_mapping") or {}
                print(
                    f"{config.stem:48} {read.get('base_model_class', family(config.name)[0]):34} {outcome}", flush=True
                )
    print(dict(counts))


if __name__ == "__main__":
    main()
