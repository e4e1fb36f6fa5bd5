"""The decision: a pure function of a policy and facts, without clock, database or files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from lora_contract.adapter.facts import AdapterFacts
from lora_contract.digest import Digest
from lora_contract.policy.document import Policy
from lora_contract.policy.evidence import describe_evidence
from lora_contract.policy.losses import compare_losses, forgetting
from lora_contract.roles import ROLES
from lora_contract.validation import Validation

CheckState = Literal["passed", "failed", "warned", "missing"]
DAY = 86400.0


class Check(msgspec.Struct, frozen=True):
    """One line of a decision. state: `missing` if the evidence is not there yet."""

    rule: str
    state: CheckState
    message: str
    evidence: dict[str, Any] = {}


class GateFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a decision depends on.

    Args:
        report: validation of the candidate; None if it was not validated yet.
        target: validation of the tag's current target; None if there is none.
        has_target: the tag points to another version.
        quality, forgetting, behaviour: required evaluation sets, references by digest.
        adapter: facts of the check at push; None for other kinds.
        meta: metadata of the version.
        approvals: (name, role) of each approver.
        signers: ids of the keys whose signatures of this version the caller has verified.
        age: of the report, in seconds.
    """

    report: Validation | None
    target: Validation | None = None
    has_target: bool = False
    quality: dict[str, str] = {}
    forgetting: dict[str, str] = {}
    behaviour: dict[str, str] = {}
    adapter: AdapterFacts | None = None
    meta: dict[str, str] = {}
    approvals: list[tuple[str, str]] = []
    signers: list[str] = []
    age: float = 0.0


class Decision(msgspec.Struct, frozen=True):
    """allowed: None: undecided; required evidence is missing and no check failed. reason: one sentence."""

    allowed: bool | None
    reason: str
    checks: list[Check]


def decide(policy: Policy, facts: GateFacts) -> Decision:
    """Apply a policy to facts. Equal arguments give equal decisions."""
    checks = [*_declared(policy, facts)]
    if facts.report is None:
        checks.append(Check("report", "missing", "The version has not been validated on these evaluation sets yet."))
    else:
        checks += [*_layers(policy, facts.report), *_runtimes(policy, facts.report), *_freshness(policy, facts)]
        checks += compare_losses(
            policy, facts.report, facts.target, has_target=facts.has_target, sets=facts.quality, make=Check
        )
        checks += forgetting(
            policy, facts.report, facts.target, has_target=facts.has_target, sets=facts.forgetting, make=Check
        )
        checks += _answers(policy, facts.report, facts.behaviour)
        checks += _tasks(policy, facts.report)
    failed = [check for check in checks if check.state == "failed"]
    missing = [check for check in checks if check.state == "missing"]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        return Decision(False, failed[0].message + more, checks)
    if missing:
        return Decision(None, missing[0].message, checks)
    return Decision(True, _success_reason(facts, checks), checks)


def _declared(policy: Policy, facts: GateFacts) -> Iterable[Check]:
    """Checks of the version's declarations: rank, licence, approvals, signatures."""
    rank = _rank(facts)
    if policy.max_rank is not None and rank is not None:
        state: CheckState = "passed" if rank <= policy.max_rank else "failed"
        yield Check("rank", state, f"The largest rank is {rank}; the maximum is {policy.max_rank}.", {"rank": rank})
    if policy.licences:
        licence = facts.meta.get("license") or facts.meta.get("licence")
        declared = "declares no licence" if licence is None else f"has the licence {licence!r}"
        state = "passed" if licence in policy.licences else "failed"
        yield Check("licence", state, f"The version {declared}; allowed: {', '.join(policy.licences)}.")
    if policy.approvals.count:
        enough = ROLES[ROLES.index(policy.approvals.role) :]
        names = sorted({name for name, role in facts.approvals if role in enough})
        state = "passed" if len(names) >= policy.approvals.count else "failed"
        yield Check(
            "approvals",
            state,
            f"{len(names)} of {policy.approvals.count} approvals by a {policy.approvals.role}"
            f"{': ' + ', '.join(names) if names else ''}.",
            {"names": names},
        )
    if policy.signatures.keys:
        yield _signatures(policy, facts)


def _signatures(policy: Policy, facts: GateFacts) -> Check:
    trusted = policy.signatures.key_ids()
    signed = sorted(set(trusted) & set(facts.signers))
    lacking = [key_id for key_id in trusted if key_id not in signed]
    count = f"{len(signed)} of {policy.signatures.count} required signatures"
    by = f": by {', '.join(map(_short, signed))}" if signed else ""
    enough = len(signed) >= policy.signatures.count
    without = "" if enough else f"; none by {', '.join(map(_short, lacking))}"
    evidence = {"signed": signed, "lacking": lacking}
    return Check("signatures", "passed" if enough else "failed", f"{count}{by}{without}.", evidence)


def _short(key_id: str) -> str:
    return Digest.parse(key_id).short


def _rank(facts: GateFacts) -> int | None:
    """The largest effective rank, from the push or the report; None if the type has no rank."""
    if facts.adapter is not None:
        return facts.adapter.max_rank
    structure = facts.report.layers.get("structure") if facts.report else None
    rank: int | None = structure.facts.get("max_rank") if structure else None
    return rank


def _layers(policy: Policy, report: Validation) -> Iterable[Check]:
    broken = any(result.state == "failed" for result in report.layers.values())
    for layer, result in report.layers.items():
        if layer in policy.skip:
            yield Check(f"layer:{layer}", "passed", f"{layer}: skipped by the policy.")
            continue
        if result.state == "skipped":
            # A skipped layer fails the gate only if no layer failed: a failure that skips others is reported once.
            state: CheckState = "missing" if broken else "failed" if layer in policy.blocking else "warned"
            yield Check(f"layer:{layer}", state, f"{layer} was not checked: {result.reason}")
            continue
        errors = [f for f in result.findings if f.severity == "error"]
        blocking = [f for f in errors if f.code not in policy.allow] if layer in policy.blocking else []
        others = [f for f in result.findings if f.severity != "note" and f not in blocking]
        shown = (blocking or others)[:1]
        more = f" (and {len(blocking or others) - 1} more)" if len(blocking or others) > 1 else ""
        state = "failed" if blocking else "warned" if others else "passed"
        message = shown[0].message + more if shown else describe_evidence(layer, result)
        codes = sorted({f.code for f in (*blocking, *others)})
        yield Check(f"layer:{layer}", state, message, {"codes": codes} if codes else {})


def _runtimes(policy: Policy, report: Validation) -> Iterable[Check]:
    layer = report.layers.get("serveability")
    known = layer.facts.get("runtimes", {}) if layer else {}
    for name in policy.runtimes:
        found = known.get(name)
        if found is None:
            yield Check(f"runtime:{name}", "missing", f"Whether {name} can serve it was not checked.")
            continue
        serves = found["state"] == "serves"
        message = f"Servable on {name}." if serves else f"Not servable on {name}: {' '.join(found['problems'])}"
        yield Check(f"runtime:{name}", "passed" if serves else "failed", message, {"state": found["state"]})


def _answers(policy: Policy, report: Validation, sets: dict[str, str]) -> Iterable[Check]:
    for digest, name in sorted(sets.items(), key=lambda item: item[1]):
        found = report.answers.get(digest)
        if found is None:
            yield Check(f"behaviour:{name}", "missing", f"There are no answers on {name} yet.")
            continue
        state: CheckState = "passed" if found.met >= policy.behaviour.least * found.asked else "failed"
        count = f"On {name} {found.met} of {found.asked} answers are as expected"
        first = f" (first failure: record {found.missed[0]['record']})" if found.missed else ""
        evidence = {"met": found.met, "asked": found.asked, "missed": found.missed}
        message = f"{count}{first}; the minimum is {policy.behaviour.least:.0%}."
        yield Check(f"behaviour:{name}", state, message, evidence)


def _tasks(policy: Policy, report: Validation) -> Iterable[Check]:
    known = report.task_metrics
    for name, least in sorted(policy.behaviour.tasks.items()):
        found = known.get(name)
        if found is None:
            others = f"; it has {', '.join(sorted(known)[:5])}" if known else ": no task was run"
            yield Check(f"task:{name}", "missing", f"The report has no {name}{others}.")
            continue
        state: CheckState = "passed" if found.value is not None and found.value >= least else "failed"
        value, base = ("not finite" if one is None else f"{one:g}" for one in (found.value, found.base))
        evidence = {"value": found.value, "stderr": found.stderr, "base": found.base}
        yield Check(f"task:{name}", state, f"{name} is {value} (base: {base}); the minimum is {least:g}.", evidence)


def _freshness(policy: Policy, facts: GateFacts) -> Iterable[Check]:
    if policy.fresh_days is not None:
        days = facts.age / DAY
        state: CheckState = "passed" if days <= policy.fresh_days else "failed"
        yield Check("freshness", state, f"The report is {days:.1f} days old; the maximum is {policy.fresh_days:g}.")


def _success_reason(facts: GateFacts, checks: list[Check]) -> str:
    judged = [check for check in checks if check.rule.startswith("quality:")]
    warned = sum(check.state == "warned" for check in checks)
    tail = f"; {warned} warning{'s' if warned > 1 else ''}" if warned else ""
    if not judged or not facts.quality:
        return f"No check failed; the policy and the request name no evaluation set{tail}."
    return f"{judged[0].message.rstrip('.')}{tail}."
