"""Validations, policies, gates and promotions."""

from __future__ import annotations

from typing import Any, Literal

from lora_contract.validation import Precision
from lora_contract.wire.common import Reason, Request, Response, Text
from lora_contract.wire.jobs import JobView
from lora_contract.wire.tags import TagView


class ValidateRequest(Request, frozen=True):
    """`POST /validations`: start a validation, or find the job of the same digests.

    version: a reference to an adapter. data: task evaluation sets, for quality. general: sets of general text, to
    measure forgetting. precision: of the loaded base; None: by its size.
    """

    version: Text
    data: list[Text] = []
    general: list[Text] = []
    precision: Precision | None = None


class PolicyRequest(Request, frozen=True):
    """`PUT /policies`: set or remove the policy of a pattern.

    pattern: `namespace/name:tag`, each part with `*` for any text. document: see `lora_contract.policy`; None removes
    the pattern's policy.
    """

    pattern: Text
    document: dict[str, Any] | None


class PolicyView(Response, frozen=True):
    """number: grows with each change of the pattern; the highest is in force. digest, document: None if removed."""

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
    governs the tag; such a decision allows no promotion. start: enqueue the validations that are missing."""

    version: Text
    tag: Text
    data: list[Text] = []
    document: dict[str, Any] | None = None
    start: bool = True


class CheckView(Response, frozen=True):
    """One line of a decision. state `missing`: the evidence is not there yet. evidence: numbers for programs."""

    rule: str
    state: Literal["passed", "failed", "warned", "missing"]
    message: str
    evidence: dict[str, Any] = {}


class GateView(Response, frozen=True):
    """allowed None: pending until `jobs` are done. holder: digest of the tag's present target.
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
    """`POST /repositories/{ns}/{name}/approvals`: approve a version (a selector) for a tag."""

    version: Text
    tag: Text
    reason: Reason = ""


class ApprovalView(Response, frozen=True):
    """role: the approver's at the time of the approval."""

    namespace: str
    name: str
    number: int
    tag: str
    author: str
    role: str
    created_at: str


class PromoteRequest(Request, frozen=True):
    """`POST /repositories/{ns}/{name}/promotions`: gate, and move the tag in the same transaction.
    expect_generation: of the tag; 0: the tag is new; None: the generation that the gate read. force: move the tag even
    if the gate refuses (administrators, with a reason)."""

    version: Text
    tag: Text
    data: list[Text] = []
    expect_generation: int | None = None
    force: bool = False
    reason: Reason = ""


class PromotionView(Response, frozen=True):
    """gate: as it was decided in the transaction. tag None: pending, and the tag did not
    move; a refusal is the problem `gate-refused`."""

    gate: GateView
    tag: TagView | None = None
