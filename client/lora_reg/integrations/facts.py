"""What is worth knowing of a training run, as metadata of a version: texts by key."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

MAX_VALUE: Final = 4096
_ARGUMENTS: Final = (
    *("learning_rate", "lr_scheduler_type", "warmup_ratio", "warmup_steps", "weight_decay", "optim", "seed"),
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("max_grad_norm", "bf16", "fp16", "gradient_checkpointing", "neftune_noise_alpha"),
)
_PACKAGES: Final = ("transformers", "peft", "torch", "trl", "accelerate", "datasets", "bitsandbytes")


def of_run(args: Any, state: Any) -> dict[str, str]:
    """Return step, epoch, losses and settings of a transformers Trainer."""
    facts = {"step": str(state.global_step), "source": "trainer"}
    if state.epoch is not None:
        facts["epoch"] = f"{state.epoch:.4g}"
    for name in ("total_flos", "num_input_tokens_seen", "best_metric", "max_steps"):
        if value := getattr(state, name, None):
            facts[f"run.{name}"] = _number(value)
    for name in _ARGUMENTS:
        value = getattr(args, name, None)
        if value is not None and value != "":
            facts[f"args.{name}"] = str(getattr(value, "value", value))
    facts["args.world_size"] = str(getattr(args, "world_size", 1))
    return facts


def of_losses(history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the last losses, and the curve as JSON: pairs of step and loss, thinned until they fit."""
    facts: dict[str, str] = {}
    for key in ("loss", "eval_loss"):
        curve = [(int(entry["step"]), float(entry[key])) for entry in history if key in entry and "step" in entry]
        if not curve:
            continue
        facts[key] = f"{curve[-1][1]:.6g}"
        text = _curve(curve)
        while len(text) > MAX_VALUE:
            curve = [*curve[:-1:2], curve[-1]]
            text = _curve(curve)
        facts[f"{key}_curve"] = text
    return facts


def of_data(data: Mapping[str, str | Path], datasets: Mapping[str, Any]) -> dict[str, str]:
    """Return digests of the training data.

    Args:
        data: files or folders by name.
        datasets: objects by name; those of the library `datasets` have a fingerprint.
    """
    facts = {}
    for name, place in data.items():
        facts[f"data.{name}"] = digest_of(Path(place))
    for name, value in datasets.items():
        if value is None:
            continue
        fingerprint = getattr(value, "_fingerprint", None)
        if isinstance(fingerprint, str):
            facts[f"data.{name}.fingerprint"] = fingerprint
        try:
            facts[f"data.{name}.records"] = str(len(value))
        except TypeError:  # an iterable has no length
            continue
    return facts


def digest_of(place: Path) -> str:
    """Return the sha256 of a file; of a folder, that of the sorted lines `path digest` of its files."""
    if place.is_dir():
        files = sorted(path for path in place.rglob("*") if path.is_file())
        lines = [f"{path.relative_to(place).as_posix()} {digest_of(path)}\n" for path in files]
        return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
    with place.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def of_code(folder: Path) -> dict[str, str]:
    """Return the git commit of a folder, whether files differ from it, and versions of the libraries in use."""
    facts = {}
    commit = _git(folder, "rev-parse", "HEAD")
    if commit:
        facts["git.commit"] = commit
        if _git(folder, "status", "--porcelain", "--untracked-files=no"):
            facts["git.dirty"] = "true"
    for name in _PACKAGES:
        try:
            facts[f"version.{name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _curve(curve: Sequence[tuple[int, float]]) -> str:
    return json.dumps([[step, float(f"{loss:.5g}")] for step, loss in curve], separators=(",", ":"))


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
