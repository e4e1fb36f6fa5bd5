"""What is validated, and on what."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lora_contract.validation import DatasetRole, Layer, Precision


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """path: JSON lines, of `lora_contract.dataset`. digest: of its version; name: for people."""

    role: DatasetRole
    digest: str
    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Subject:
    """An adapter on its base, and how to validate it.

    Args:
        base, adapter: folders.
        version, base_digest: what the report is bound to.
        sets: evaluation sets.
        skip: layers not to run, and why.
        base_names: names by which trainers know the base; None accepts whatever the adapter's config says.
        precision: how the base is loaded.
        tasks: folders of lm-evaluation-harness, whose code is run: the user's own.
    """

    base: Path
    adapter: Path
    version: str
    base_digest: str
    sets: tuple[EvaluationSet, ...] = ()
    skip: dict[Layer, str] = field(default_factory=dict)
    base_names: frozenset[str] | None = None
    precision: Precision = "float32"
    tasks: tuple[Path, ...] = ()
