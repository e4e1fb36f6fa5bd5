"""Subject of a validation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lora_contract.validation import DatasetRole, Layer, Precision


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """path: JSON lines as in `lora_contract.dataset`. digest: of its version. name: for display."""

    role: DatasetRole
    digest: str
    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Subject:
    """An adapter on its base, and how to validate it.

    Args:
        base, adapter: folders.
        version, base_digest: digests that the report is bound to.
        sets: evaluation sets.
        skip: layers to skip, with the reasons.
        base_names: aliases of the base; None accepts any base name in the adapter's config.
        precision: how the base is loaded.
        tasks: folders of lm-evaluation-harness tasks; the user's own, since their code is run.
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
