"""The decision: a pure function of a policy and of facts. It reads no clock, no row and no file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from lora_contract.adapter.facts import AdapterFacts
from lora_contract.digest import Digest
from lora_contract.policy.document import Policy
from lora_contract.policy.evidence import looked_at
from lora_contract.policy.losses import compare_losses, forgetting
from lora_contract.validation import Validation

CheckState = Literal["passed", "failed", "warned", "missing"]
DAY = 86400.0


class Check(msgspec.Struct, frozen=True):
    """One line of a decision. missing: there is nothing yet to judge."""

    rule: str
    state: CheckState
    message: str
    evidence: dict[str, Any] = {}


class GateFacts(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision rests on.

    report, holder: validations of the candidate and of the version that the tag points to now; None where there is
    none yet. held: whether the tag points to another version. quality, forgetting, behaviour: digest and reference of
    the evaluation sets that are asked for. adapter: facts of the check at push; None for what is no adapter. meta: the
    version's. approvals: (name, role) of those who approved. signers: ids of keys whose signatures of this version were
    verified; who makes the facts has done that. age: seconds since the report.
    """

    report: Validation | None
    holder: Validation | None = None
    held: bool = False
    quality: dict[str, str] = {}
    forgetting: dict[str, str] = {}
    behaviour: dict[str, str] = {}
    adapter: AdapterFacts | None = None
    meta: dict[str, str] = {}
    approvals: list[tuple[str, str]] = []
    signers: list[str] = []
    age: float = 0.0


class Decision(msgspec.Struct, frozen=True):
    """allowed None: something is missing and nothing that is there refuses. reason: one sentence."""

    allowed: bool | None
    reason: str
    checks: list[Check]


def decide(policy: Policy, facts: GateFacts) -> Decision:
    """Judge. Equal arguments give equal decisions."""
    checks = [*_declared(policy, facts)]
    if facts.report is None:
        checks.append(Check("report", "missing", "The version was not validated on these evaluation sets yet."))
    else:
        checks += [*_layers(policy, facts.report), *_runtimes(policy, facts.report), *_freshness(policy, facts)]
        checks += compare_losses(policy, facts.report, facts.holder, held=facts.held, sets=facts.quality, make=Check)
        checks += forgetting(policy, facts.report, facts.holder, held=facts.held, sets=facts.forgetting, make=Check)
        checks += _answers(policy, facts.report, facts.behaviour)
        checks += _tasks(policy, facts.report)
    failed = [check for check in checks if check.state == "failed"]
    missing = [check for check in checks if check.state == "missing"]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        return Decision(False, failed[0].message + more, checks)
    if missing:
        return Decision(None, missing[0].message, checks)
    return Decision(True, _praise(facts, checks), checks)


def _declared(policy: Policy, facts: GateFacts) -> Iterable[Check]:
    """What the version says of itself."""
    rank = _rank(facts)
    if policy.max_rank is not None and rank is not None:
        state: CheckState = "passed" if rank <= policy.max_rank else "failed"
        yield Check("rank", state, f"The largest rank is {rank}; at most {policy.max_rank} is allowed.", {"rank": rank})
    if policy.licences:
        licence = facts.meta.get("license") or facts.meta.get("licence")
        told = "names no licence" if licence is None else f"is under {licence!r}"
        state = "passed" if licence in policy.licences else "failed"
        yield Check("licence", state, f"The version {told}; allowed are {', '.join(policy.licences)}.")
    if policy.approvals.count:
        ranks = ("reader", "writer", "admin")
        least = ranks.index(policy.approvals.role)
        names = sorted({name for name, role in facts.approvals if role in ranks and ranks.index(role) >= least})
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
    asked = policy.signatures.key_ids()
    signed = sorted(set(asked) & set(facts.signers))
    lacking = [key_id for key_id in asked if key_id not in signed]
    told = f"{len(signed)} of {policy.signatures.count} signatures that the policy asks for"
    by = f": by {', '.join(map(_short, signed))}" if signed else ""
    enough = len(signed) >= policy.signatures.count
    without = "" if enough else f"; none by {', '.join(map(_short, lacking))}"
    evidence = {"signed": signed, "lacking": lacking}
    return Check("signatures", "passed" if enough else "failed", f"{told}{by}{without}.", evidence)


def _short(key_id: str) -> str:
    return Digest.parse(key_id).short


def _rank(facts: GateFacts) -> int | None:
    """The largest effective rank, from the push or from the report; None where the type has none."""
    if facts.adapter is not None:
        return facts.adapter.max_rank
    structure = facts.report.layers.get("structure") if facts.report else None
    rank: int | None = structure.facts.get("max_rank") if structure else None
    return rank


def _layers(policy: Policy, report: Validation) -> Iterable[Check]:
    broken = any(result.state == "failed" for result in report.layers.values())
    for layer, result in report.layers.items():
        if layer in policy.skip:
            yield Check(f"layer:{layer}", "passed", f"{layer}: the policy does not ask for it.")
            continue
        if result.state == "skipped":
            # What was not looked at refuses by itself only where nothing else does: one fault is told once.
            state: CheckState = "missing" if broken else "failed" if layer in policy.blocking else "warned"
            yield Check(f"layer:{layer}", state, f"{layer} was not looked at: {result.reason}")
            continue
        errors = [f for f in result.findings if f.severity == "error"]
        blocking = [f for f in errors if f.code not in policy.allow] if layer in policy.blocking else []
        others = [f for f in result.findings if f.severity != "note" and f not in blocking]
        told = (blocking or others)[:1]
        more = f" (and {len(blocking or others) - 1} more)" if len(blocking or others) > 1 else ""
        state = "failed" if blocking else "warned" if others else "passed"
        message = told[0].message + more if told else looked_at(layer, result)
        codes = sorted({f.code for f in (*blocking, *others)})
        yield Check(f"layer:{layer}", state, message, {"codes": codes} if codes else {})


def _runtimes(policy: Policy, report: Validation) -> Iterable[Check]:
    layer = report.layers.get("serveability")
    known = layer.facts.get("runtimes", {}) if layer else {}
    for name in policy.runtimes:
        found = known.get(name)
        if found is None:
            yield Check(f"runtime:{name}", "missing", f"Whether {name} can serve it was not looked at.")
            continue
        serves = found["state"] == "serves"
        told = "serves it as it is." if serves else f"cannot serve it: {' '.join(found['problems'])}"
        yield Check(f"runtime:{name}", "passed" if serves else "failed", f"{name} {told}", {"state": found["state"]})


def _answers(policy: Policy, report: Validation, sets: dict[str, str]) -> Iterable[Check]:
    for digest, name in sorted(sets.items(), key=lambda item: item[1]):
        found = report.answers.get(digest)
        if found is None:
            yield Check(f"behaviour:{name}", "missing", f"There are no answers on {name} yet.")
            continue
        state: CheckState = "passed" if found.met >= policy.behaviour.least * found.asked else "failed"
        told = f"On {name} {found.met} of {found.asked} answers are as expected"
        first = f", not that of record {found.missed[0]['record']}" if found.missed else ""
        evidence = {"met": found.met, "asked": found.asked, "missed": found.missed}
        yield Check(f"behaviour:{name}", state, f"{told}{first}; at least {policy.behaviour.least:.0%}.", evidence)


def _tasks(policy: Policy, report: Validation) -> Iterable[Check]:
    known = report.task_metrics
    for name, least in sorted(policy.behaviour.tasks.items()):
        found = known.get(name)
        if found is None:
            others = f"; it has {', '.join(sorted(known)[:5])}" if known else ": no such task was run"
            yield Check(f"task:{name}", "missing", f"The report has no {name}{others}.")
            continue
        state: CheckState = "passed" if found.value is not None and found.value >= least else "failed"
        value, base = ("not finite" if one is None else f"{one:g}" for one in (found.value, found.base))
        evidence = {"value": found.value, "stderr": found.stderr, "base": found.base}
        yield Check(f"task:{name}", state, f"{name} is {value}, of the base {base}; at least {least:g}.", evidence)


def _freshness(policy: Policy, facts: GateFacts) -> Iterable[Check]:
    if policy.fresh_days is not None:
        days = facts.age / DAY
        state: CheckState = "passed" if days <= policy.fresh_days else "failed"
        yield Check(
            "freshness", state, f"The report is {days:.1f} days old; at most {policy.fresh_days:g} are allowed."
        )


def _praise(facts: GateFacts, checks: list[Check]) -> str:
    judged = [check for check in checks if check.rule.startswith("quality:")]
    warned = sum(check.state == "warned" for check in checks)
    tail = f"; {warned} warning{'s' if warned > 1 else ''}" if warned else ""
    if not judged or not facts.quality:
        return f"Nothing that was found blocks it, and no evaluation set was asked for{tail}."
    return f"{judged[0].message.rstrip('.')}{tail}."
