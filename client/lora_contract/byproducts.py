"""What trainers leave beside an adapter. A push leaves it out: it is never opened and never sent.

The page `docs/left-out.md` is generated from this table.
"""

from __future__ import annotations

import re
from fnmatch import translate
from typing import Final

import msgspec

from lora_contract.adapter.report import WEIGHTS


class ByProduct(msgspec.Struct, frozen=True):
    """Files of one purpose.

    Args:
        what: what they are.
        by: programs that write them.
        names: patterns of their names, with `*` for any text; with a final '/', of folders.
        beside: left out only if this file is there too; None: always.
        of_model: they are a part of a model, and left out beside an adapter only.
    """

    what: str
    by: str
    names: tuple[str, ...]
    beside: str | None = None
    of_model: bool = False


HOUSEKEEPING: Final = ByProduct(
    "files of git, of huggingface_hub and of file managers",
    "git, huggingface_hub, macOS",
    (".git", ".gitattributes", ".gitignore", ".cache", ".DS_Store", ".huggingface", ".loraregignore"),
)
"""Left out with `--strict` too."""

BYPRODUCTS: Final[tuple[ByProduct, ...]] = (
    ByProduct(
        "state of optimizer, scheduler, loss scaling and random numbers",
        "Trainer, TRL, axolotl, Unsloth, LLaMA-Factory, Accelerate",
        (
            *("optimizer.pt", "optimizer.bin", "optimizer_*.bin", "scheduler.pt", "scheduler.bin", "scheduler_*.bin"),
            *("rng_state*.pth", "random_states_*.pkl", "scaler.pt", "sampler*.bin", "custom_checkpoint_*.pkl"),
            *("dl_state_dict*.bin", "optim.pt"),
        ),
    ),
    ByProduct(
        "arguments of the run",
        "Trainer, AutoTrain, axolotl, LLaMA-Factory, torchtune",
        (
            *("training_args.bin", "training_params.json", "finetuning_args.json", "*.yaml", "*.yml"),
            *("accelerate_config.json", "torchtune_config.json"),
        ),
    ),
    ByProduct(
        "checkpoints, and whatever lies in their folders",
        "Trainer, DeepSpeed, Accelerate, torchtune",
        ("checkpoint-*/", "checkpoint_*/", "last-checkpoint/", "global_step*/", "epoch_*/", "step_*/"),
    ),
    ByProduct(
        "partitions of a distributed run, and the script that joins them",
        "DeepSpeed, FSDP",
        (
            *("zero_to_fp32.py", "latest", "latest_universal", "zero_pp_rank_*", "mp_rank_*", "ds_config*.json"),
            *("deepspeed*.json", "pytorch_model_fsdp*", "optimizer_*/", "*.distcp", ".metadata", "dist_cp/"),
        ),
    ),
    ByProduct(
        "logs and what trackers of experiments keep",
        "TensorBoard, Weights & Biases, MLflow, Aim, Neptune, SwanLab, CodeCarbon, LLaMA-Factory, torchtune, TRL",
        (
            *("runs/", "logs/", "log/", "wandb/", "mlruns/", "tensorboard/", "lightning_logs/", "swanlog/", ".aim/"),
            *(".neptune/", "events.out.tfevents*", "*.log", "trainer_log.jsonl", "running_log.txt", "log_*.txt"),
            *("log_history.json", "nohup.out", "emissions.csv", "completions/", "profiling_outputs/", "profiler/"),
            "memory_snapshot*",
        ),
    ),
    ByProduct(
        "plots and pictures",
        "LLaMA-Factory, model cards",
        ("*.png", "*.jpg", "*.jpeg", "*.svg", "*.gif", "*.webp"),
    ),
    ByProduct(
        "results and predictions of an evaluation",
        "Trainer, LLaMA-Factory",
        (
            *("all_results.json", "train_results.json", "eval_results.json", "test_results.json"),
            *("predict_results.json", "generated_predictions.jsonl"),
        ),
    ),
    ByProduct(
        "the base's config and whole models",
        "axolotl, Unsloth, LLaMA-Factory, torchtune, transformers",
        (
            *("config.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
            *("ft-model-*-of-*.safetensors", "pytorch_model*.bin", "pytorch_model*.bin.index.json", "consolidated.*"),
            *("hf_model_*.pt", "*.gguf", "tf_model.h5", "flax_model.msgpack", "original/", "merged/", "base_model/"),
        ),
        of_model=True,
    ),
    ByProduct(
        "the adapter in another format",
        "PEFT before 0.6, torchtune, llama.cpp",
        ("adapter_model.bin", "adapter_model.pt", "adapter_[0-9]*.pt", "adapter_model*.bin"),
        beside=WEIGHTS,
    ),
    ByProduct(
        "state from which a recipe resumes",
        "torchtune",
        ("recipe_state.pt", "recipe_state/"),
    ),
    ByProduct(
        "where the base was downloaded from",
        "torchtune",
        ("original_repo_id.json",),
    ),
    ByProduct(
        "templates for an inference program",
        "LLaMA-Factory, Unsloth",
        ("Modelfile",),
    ),
    ByProduct(
        "caches and leftovers of editors and programs",
        "Python, Jupyter, Hydra, axolotl, editors, Windows",
        (
            *("__pycache__/", "*.pyc", ".ipynb_checkpoints/", ".hydra/", "last_run_prepared/", ".vscode/", ".idea/"),
            *(".venv/", ".locks/", ".gitkeep", ".pytest_cache/", "*.lock", "*.swp", "*~", "Thumbs.db", "desktop.ini"),
        ),
    ),
)


def _pattern(rows: tuple[ByProduct, ...], *, folders: bool) -> re.Pattern[str]:
    names = {name for row in rows for name in row.names}
    chosen = {name.removesuffix("/") for name in names if folders or not name.endswith("/")}
    return re.compile("|".join(translate(name) for name in sorted(chosen)))


_OF_RUN: Final = tuple(row for row in BYPRODUCTS if row.beside is None and not row.of_model)
_RUN_FILES: Final = _pattern(_OF_RUN, folders=False)
_RUN_FOLDERS: Final = _pattern(_OF_RUN, folders=True)
_ALWAYS: Final = tuple(row for row in BYPRODUCTS if row.beside is None)
_BESIDE: Final = tuple(row for row in BYPRODUCTS if row.beside is not None)
_FILES: Final = (_pattern(_ALWAYS, folders=False), _pattern((*_ALWAYS, *_BESIDE), folders=False))
_FOLDERS: Final = (_pattern(_ALWAYS, folders=True), _pattern((*_ALWAYS, *_BESIDE), folders=True))


def is_byproduct(name: str, *, folder: bool, weights: bool) -> bool:
    """Whether a file or folder of this name is left out of an adapter.

    Args:
        name: the last component of its path.
        folder: it is a folder, or a link, whose target is not looked at.
        weights: the adapter's weights lie in the folder too.
    """
    return (_FOLDERS if folder else _FILES)[weights].match(name) is not None


def is_of_run(path: str) -> bool:
    """Whether a path is a by-product of a run, or in a folder that is one, whatever it lies beside."""
    *folders, name = path.split("/")
    return _RUN_FILES.match(name) is not None or any(_RUN_FOLDERS.match(part) for part in folders)


def is_housekeeping(name: str) -> bool:
    return name in HOUSEKEEPING.names
