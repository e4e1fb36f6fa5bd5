"""The kinds of jobs, each with the struct that a request passes to the worker. Versions are row ids."""

from __future__ import annotations

from typing import Final

import msgspec

from lora_contract.recipe import OPERATIONS, Operation
from lora_contract.validation import DatasetRole, Precision
from lora_registry.jobs.engine.kinds import JobKind

HOUR: Final = 3600.0


class InspectSpec(msgspec.Struct, frozen=True):
    version: int


class EvaluationSetSpec(msgspec.Struct, frozen=True):
    """name: the evaluation set as named in the request."""

    role: DatasetRole
    version: int
    name: str


class ValidateSpec(msgspec.Struct, frozen=True):
    version: int
    sets: tuple[EvaluationSetSpec, ...]
    precision: Precision


class DiffSpec(msgspec.Struct, frozen=True):
    """version: the later one; the report is stored on it."""

    before: int
    version: int


class RecipeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe by digest, and the versions that its inputs resolved to: several versions may hold the same content."""

    recipe: str
    base: int
    inputs: tuple[int, ...]


class DeriveSpec(RecipeSpec, frozen=True, kw_only=True):
    """author: name of the principal who asked. spelling: of the target's name; None in jobs of older services."""

    tags: tuple[str, ...]
    message: str
    author: str
    spelling: str | None = None


class ReproduceSpec(RecipeSpec, frozen=True, kw_only=True):
    version: int


# An inspection takes a second, and a user waits for it.
INSPECT: Final = JobKind("inspect", InspectSpec, priority=50, timeout=6 * HOUR)
DIFF: Final = JobKind("diff", DiffSpec, priority=60, timeout=6 * HOUR)
VALIDATE: Final = JobKind("validate", ValidateSpec, priority=75, timeout=24 * HOUR)
REPRODUCE: Final = JobKind("reproduce", ReproduceSpec, timeout=24 * HOUR)
DERIVE: Final[dict[Operation, JobKind[DeriveSpec]]] = {
    operation: JobKind(operation, DeriveSpec, timeout=24 * HOUR) for operation in OPERATIONS
}
