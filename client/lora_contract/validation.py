"""Validation reports: measurements and findings of a version on its pinned base.

A report is bound by digest to the version, its base and the evaluation sets, and by number to the suite. Losses are
stored per record, so that two versions evaluated on the same sets can be compared later without running either.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec

from lora_contract import canonical, decoding
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.findings import Finding

SUITE: Final = 2
"""Incremented when the same inputs give other numbers or findings; reports of another suite are stale."""

Layer = Literal[
    "structure", "tokenizer", "serveability", "numbers", "effect", "agreement", "quality", "forgetting", "behaviour"
]

DatasetRole = Literal["quality", "forgetting", "behaviour"]
DATASET_ROLES: Final[tuple[DatasetRole, ...]] = get_args(DatasetRole)
LayerState = Literal["passed", "failed", "skipped"]

Facts: TypeAlias = dict[str, Any]

Precision = Literal["float32", "bfloat16", "nf4"]
"""How a base is loaded: in one of two dtypes, or quantized as for QLoRA (bitsandbytes, double quantization). Products
and sums are in float32, or in bfloat16 for `bfloat16` and for `nf4` on a GPU."""

LARGE_BASE: Final = 4 * 10**9
"""Bytes of weights above which a base is loaded in bfloat16 by default."""


def default_precision(nbytes: int) -> Precision:
    """The default for a base whose files have so many bytes."""
    return "float32" if nbytes <= LARGE_BASE else "bfloat16"


class LayerResult(msgspec.Struct, frozen=True):
    """The result of one layer of checks.

    Args:
        state: `failed` if a finding is an error; `skipped` if the layer was not run.
        facts: the evidence, as JSON values.
        reason: why the layer was skipped.
    """

    state: LayerState
    findings: list[Finding] = []
    facts: Facts = {}
    reason: str = ""


class Evaluation(msgspec.Struct, frozen=True):
    """Losses on one evaluation set.

    Args:
        dataset: digest of its version.
        name: `namespace/name:vN` at the time of the validation.
        nats: sums of -log p over the predicted tokens of each record; None if not finite.
        base_nats: the same for the base without the adapter.
        tokens: number of predicted tokens of each record.
    """

    dataset: str
    name: str
    role: DatasetRole
    nats: list[float | None]
    base_nats: list[float | None]
    tokens: list[int]

    @property
    def loss(self) -> float:
        """Nats per token; NaN if a record has no finite loss."""
        return mean_loss(self.nats, self.tokens)

    @property
    def base_loss(self) -> float:
        return mean_loss(self.base_nats, self.tokens)


class Answers(msgspec.Struct, frozen=True):
    """Results on one set of prompts with expected answers.

    Args:
        name: `namespace/name:vN` at the time of the validation.
        met: number of answers as expected.
        asked: number of prompts.
        missed: the first few failures, each with `record` (from 1), `expected` and `answer`.
    """

    name: str
    met: int
    asked: int
    missed: list[Facts] = []


class TaskMetric(msgspec.Struct, frozen=True):
    """One metric of a task. None if a number is not finite, or if the metric has no standard error.

    value, stderr: with the adapter. base, base_stderr: of the base without the adapter.
    """

    value: float | None
    stderr: float | None
    base: float | None
    base_stderr: float | None


class TaskResult(msgspec.Struct, frozen=True):
    """Results of one task of lm-evaluation-harness, or of a group of tasks.

    digest: of the task's folder, by the paths and SHA-256 of its files. metrics: by name, followed by `,` and the
    filter if there is one.
    """

    digest: str
    records: int
    metrics: dict[str, TaskMetric]


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a report of kind `validate`.

    Args:
        version, base: digests.
        datasets: digests of the evaluation sets by role, sorted.
        environment: machine, backend, thread count and library versions.
        answers: by digest of the evaluation set.
        tasks: by name; only in reports that were made on a user's machine.
    """

    schema: int = 1
    suite: int = SUITE
    version: str
    base: str
    precision: Precision = "float32"
    datasets: dict[DatasetRole, list[str]]
    environment: dict[str, str]
    layers: dict[Layer, LayerResult]
    evaluations: list[Evaluation] = []
    answers: dict[str, Answers] = {}
    tasks: dict[str, TaskResult] = {}

    @property
    def task_metrics(self) -> dict[str, TaskMetric]:
        """Metrics by `task.metric`, as policies name them."""
        return {
            f"{task}.{name}": metric for task, found in self.tasks.items() for name, metric in found.metrics.items()
        }

    @property
    def passed(self) -> bool:
        return not any(result.state == "failed" for result in self.layers.values())

    @property
    def findings(self) -> list[Finding]:
        return [finding for result in self.layers.values() for finding in result.findings]

    def to_bytes(self) -> bytes:
        return canonical.dumps(msgspec.to_builtins(self))

    @property
    def digest(self) -> Digest:
        return Digest.of(self.to_bytes())


class ValidationKey(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a report depends on except the machine: the identity of its job.

    version, base: digests. quality, forgetting, behaviour: sorted digests of evaluation sets.
    """

    version: str
    base: str
    quality: tuple[str, ...] = ()
    forgetting: tuple[str, ...] = ()
    behaviour: tuple[str, ...] = ()
    precision: Precision = "float32"
    suite: int = SUITE

    @property
    def digest(self) -> Digest:
        return Digest.of(canonical.dumps(msgspec.to_builtins(self)))


def parse_validation(data: bytes) -> Validation:
    """Parse the body of a report. Raises RegistryError `corrupt`."""
    try:
        found: Validation = decoding.decode(data, Validation)
    except msgspec.MsgspecError as error:
        raise RegistryError("corrupt", f"The report is malformed: {error}.") from error
    return found


def mean_loss(nats: list[float | None], tokens: list[int]) -> float:
    """Nats per token over all records; NaN if there are none or one is None."""
    total = sum(tokens)
    if not total or any(value is None for value in nats):
        return float("nan")
    return sum(value for value in nats if value is not None) / total
