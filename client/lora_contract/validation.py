"""Reports of validations: what was measured of a version on its pinned base, and what was found.

A report is bound by digest to the version, its base and the evaluation sets, and by number to the suite. Losses are
kept record by record, so that two versions that were evaluated on the same sets are compared later without running
either.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec

from lora_contract import canonical
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.findings import Finding

SUITE: Final = 2
"""Grows where the same inputs come to mean other numbers or findings; reports of another suite are stale."""

Layer = Literal[
    "structure", "tokenizer", "serveability", "numbers", "effect", "agreement", "quality", "forgetting", "behaviour"
]

Role = Literal["quality", "forgetting", "behaviour"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
State = Literal["passed", "failed", "skipped"]

Facts: TypeAlias = dict[str, Any]

Precision = Literal["float32", "bfloat16", "nf4"]
"""What a base is loaded as: its weights in one of two types, or quantized as QLoRA trains on it (bitsandbytes, double
quantization). Products and sums are in float32, or in bfloat16 for `bfloat16` and for `nf4` on a GPU."""

LARGE_BASE: Final = 4 * 10**9
"""Bytes of weights beyond which a base is loaded in bfloat16 where nobody says otherwise."""


def usual_precision(weights: int) -> Precision:
    """weights: bytes of the base's files."""
    return "float32" if weights <= LARGE_BASE else "bfloat16"


class LayerResult(msgspec.Struct, frozen=True):
    """failed: a finding is an error. skipped: not run; `reason` says why. facts: the evidence, JSON values."""

    state: State
    findings: list[Finding] = []
    facts: Facts = {}
    reason: str = ""


class Evaluation(msgspec.Struct, frozen=True):
    """Losses on one evaluation set. dataset: digest of its version; name: `namespace/name:vN` as it was then.

    nats, base_nats: sums of -log p over the predicted tokens of each record, with the adapter and of the base alone;
    tokens: how many were predicted. NaN and infinity are written as None.
    """

    dataset: str
    name: str
    role: Role
    nats: list[float | None]
    base_nats: list[float | None]
    tokens: list[int]

    @property
    def loss(self) -> float:
        """nats per token; NaN where a record has no finite loss."""
        return mean_loss(self.nats, self.tokens)

    @property
    def base_loss(self) -> float:
        return mean_loss(self.base_nats, self.tokens)


class Answers(msgspec.Struct, frozen=True):
    """On one set of prompts with expected answers. name: as of an Evaluation. missed: the first few that failed, each
    with `record` (from 1), `expected` and `answer`."""

    name: str
    met: int
    asked: int
    missed: list[Facts] = []


class TaskMetric(msgspec.Struct, frozen=True):
    """value, stderr: with the adapter, of whatever the task measures; base, base_stderr: of the base alone. None: not
    finite; of an error also that the metric has none."""

    value: float | None
    stderr: float | None
    base: float | None
    base_stderr: float | None


class TaskResult(msgspec.Struct, frozen=True):
    """Of one task of lm-evaluation-harness, or of a group of them. digest: of the folder that it was read from, by the
    paths and sha256 of its files. metrics: by name, with `,` and the filter behind it where there is one."""

    digest: str
    records: int
    metrics: dict[str, TaskMetric]


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a report of kind `validate`. version, base: digests. datasets: digests of the evaluation sets by
    role, sorted. environment: machine, backend, thread count and the versions of libraries that made the numbers.
    answers: by digest of the set. tasks: by name; of a report that was made on a user's machine alone."""

    schema: int = 1
    suite: int = SUITE
    version: str
    base: str
    precision: Precision = "float32"
    datasets: dict[Role, list[str]]
    environment: dict[str, str]
    layers: dict[Layer, LayerResult]
    evaluations: list[Evaluation] = []
    answers: dict[str, Answers] = {}
    tasks: dict[str, TaskResult] = {}

    @property
    def task_metrics(self) -> dict[str, TaskMetric]:
        """By task and metric, as `task.metric`: how policies name them."""
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
    """What a report depends on, apart from the machine: the identity of its job. Digests; datasets sorted."""

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
    """Read a report's body. Raises RegistryError `corrupt`."""
    try:
        found: Validation = msgspec.json.decode(data, type=Validation)
    except msgspec.MsgspecError as error:
        raise RegistryError("corrupt", f"The report is malformed: {error}.") from error
    return found


def mean_loss(nats: list[float | None], tokens: list[int]) -> float:
    """nats per token over all records; NaN where there are none or one is None."""
    total = sum(tokens)
    if not total or any(value is None for value in nats):
        return float("nan")
    return sum(value for value in nats if value is not None) / total
