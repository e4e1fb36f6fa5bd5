"""Validations, policies, gates and promotions."""

from __future__ import annotations

from typing import Any, Literal

from lora_contract.validation import Precision
from lora_contract.wire.common import Request, Response
from lora_contract.wire.jobs import JobView
from lora_contract.wire.tags import TagView


class ValidateRequest(Request, frozen=True):
    """`POST /validations`: a job, or the one of the same digests. version: a reference to an adapter. data: evaluation
    sets, whose losses are quality; general: sets of general text, on which an adapter is seen to forget. precision:
    what the base is loaded as; None: by its size."""

    version: str
    data: list[str] = []
    general: list[str] = []
    precision: Precision | None = None


class PolicyRequest(Request, frozen=True):
    """`PUT /policies`: what governs tags from now on. pattern: `namespace/name:tag`, each part with `*` for any text.
    document: of `lora_contract.policy`; None lifts the pattern's policy."""

    pattern: str
    document: dict[str, Any] | None


class PolicyView(Response, frozen=True):
    """number: grows with each document of the pattern; the newest holds. digest, document None: it was lifted."""

    pattern: str
    number: int
    digest: str | None
    document: dict[str, Any] | None
    author: str
    created_at: str


class PolicyList(Response, frozen=True):
    items: list[PolicyView]


class GateRequest(Request, frozen=True):
    """`POST /repositories/{ns}/{name}/gates`. version: a selector. document: a policy to try instead of the one that
    governs the tag; such a decision promotes nothing. start: enqueue the validations that are missing."""

    version: str
    tag: str
    data: list[str] = []
    document: dict[str, Any] | None = None
    start: bool = True


class CheckView(Response, frozen=True):
    """One line of a decision. state `missing`: there is nothing yet to judge. evidence: numbers for programs."""

    rule: str
    state: Literal["passed", "failed", "warned", "missing"]
    message: str
    evidence: dict[str, Any] = {}


class GateView(Response, frozen=True):
    """allowed None: pending, `jobs` are what is waited for. holder: the version that the tag points to, by digest.
    policy_pattern None: the default policy, or one that was only tried. reports: ids. reason: one sentence.
    decision: id of the stored decision; None while pending, or of a trial."""

    namespace: str
    name: str
    tag: str
    version: str
    number: int
    base: str
    holder: str | None
    holder_number: int | None
    policy: str
    policy_name: str
    policy_pattern: str | None
    allowed: bool | None
    reason: str
    checks: list[CheckView]
    reports: list[str] = []
    jobs: list[JobView] = []
    decision: str | None = None


class ApproveRequest(Request, frozen=True):
    """`POST /repositories/{ns}/{name}/approvals`: the caller's word for a version (a selector) and a tag."""

    version: str
    tag: str
    reason: str = ""


class ApprovalView(Response, frozen=True):
    """role: the caller's when it was given."""

    namespace: str
    name: str
    number: int
    tag: str
    author: str
    role: str
    created_at: str


class PromoteRequest(Request, frozen=True):
    """`POST /repositories/{ns}/{name}/promotions`: gate and move in one transaction. expect_generation: of the tag; 0
    for none yet; None takes what the gate saw. force: an administrator's, with its reason."""

    version: str
    tag: str
    data: list[str] = []
    expect_generation: int | None = None
    force: bool = False
    reason: str = ""


class PromotionView(Response, frozen=True):
    """gate: as it was decided in the transaction. tag None: pending, and the tag did not
    move; a refusal is the problem `gate-refused`."""

    gate: GateView
    tag: TagView | None = None
