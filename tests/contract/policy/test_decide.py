"""Decisions: pure, complete, and for the right reason."""

from __future__ import annotations

import json
import random
from pathlib import Path

import msgspec
import pytest

from lora_contract.adapter.facts import AdapterFacts
from lora_contract.errors import RegistryError
from lora_contract.findings import Finding
from lora_contract.policy import DEFAULT, GateFacts, decide, parse_policy
from lora_contract.validation import Evaluation, LayerResult, TaskMetric, TaskResult, Validation
from tests.support.signing import Signer
from tests.support.testbed import require_testbed

SETS = {"sha256:aa": "acme/sql"}
LAYERS = {name: LayerResult("passed") for name in ("structure", "numbers", "effect", "agreement")}
BASE = [400.0 + 3 * i for i in range(20)]
TOKENS = [100 + i for i in range(20)]


def report(change: float = -0.5, *, layers=LAYERS, dataset: str = "sha256:aa", jitter: float = 0.02) -> Validation:
    rng = random.Random(1)
    nats = [base + (change + rng.gauss(0, jitter)) * count for base, count in zip(BASE, TOKENS, strict=True)]
    found = Evaluation(dataset, "acme/sql:v1", "quality", nats, BASE, TOKENS)
    return Validation(
        version="v", base="b", datasets={"quality": [dataset]}, environment={}, layers=layers, evaluations=[found]
    )


def states(decision) -> dict[str, str]:
    return {check.rule: check.state for check in decision.checks}


def test_better_than_the_base_is_allowed() -> None:
    decision = decide(DEFAULT, GateFacts(report=report(), quality=SETS))
    assert decision.allowed is True
    assert decision.reason.startswith(
        "On acme/sql it is better than the base by 0.4997 nats per token (0.4905 to 0.5089 at 95%, 20 records)"
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (0.5, "worse than the base"),
        (-0.001, "the smallest relevant difference is 0.02"),
        (0.001, "not better than the base"),
    ],
)
def test_what_is_not_better_than_the_base_is_refused(change: float, told: str) -> None:
    decision = decide(DEFAULT, GateFacts(report=report(change, jitter=0.0001), quality=SETS))
    assert decision.allowed is False
    assert told in decision.reason


@pytest.mark.parametrize(
    ("holder", "allowed", "told"),
    [
        (-0.6, False, "worse than the tag's current target"),
        (-0.51, True, "neither better nor worse"),
        (-0.3, True, "better than the tag's current target"),
    ],
)
def test_the_holder_of_the_tag_is_the_measure(holder: float, allowed: bool, told: str) -> None:
    decision = decide(DEFAULT, GateFacts(report=report(), target=report(holder), has_target=True, quality=SETS))
    assert decision.allowed is allowed
    assert any(told in check.message for check in decision.checks if check.rule == "quality:acme/sql:holder")


def test_what_another_seed_would_do_counts_for_nothing() -> None:
    """Beyond its interval and beyond the least effect, but a small part of what the holder has learned."""
    facts = GateFacts(report=report(-1.4), target=report(-1.5), has_target=True, quality=SETS)
    assert decide(DEFAULT, facts).allowed is True
    assert decide(parse_policy({"quality": {"least_share": 0.0}}), facts).allowed is False


def test_records_that_tell_little_tell_no_difference() -> None:
    """Beyond the least that counts on these records, but its interval is not."""
    facts = GateFacts(report=report(-0.43, jitter=0.12), target=report(-0.5, jitter=0.0), has_target=True, quality=SETS)
    check = decide(DEFAULT, facts).checks[-1]
    assert check.evidence["difference"] > check.evidence["least_effect"]
    assert 0 < check.evidence["low"] < check.evidence["least_effect"]
    assert check.state == "passed"
    assert "neither better nor worse" in check.message
    sure = GateFacts(report=report(-0.43, jitter=0.02), target=report(-0.5, jitter=0.0), has_target=True, quality=SETS)
    assert decide(DEFAULT, sure).checks[-1].state == "failed"


def test_what_is_missing_is_told_and_decides_nothing() -> None:
    assert decide(DEFAULT, GateFacts(report=None, quality=SETS)).allowed is None
    assert decide(DEFAULT, GateFacts(report=report(dataset="sha256:bb"), quality=SETS)).allowed is None
    lacking = decide(DEFAULT, GateFacts(report=report(), has_target=True, quality=SETS))
    assert lacking.allowed is None
    assert states(lacking)["quality:acme/sql:holder"] == "missing"


def test_a_refusal_does_not_wait_for_what_is_missing() -> None:
    decision = decide(DEFAULT, GateFacts(report=report(0.5), has_target=True, quality=SETS))
    assert decision.allowed is False


def test_without_an_evaluation_set_the_other_layers_decide_and_it_says_so() -> None:
    decision = decide(DEFAULT, GateFacts(report=report()))
    assert decision.allowed is True
    assert states(decision)["quality"] == "warned"
    assert "no evaluation set" in decision.reason


@pytest.mark.parametrize("layer", ["structure", "numbers", "effect", "agreement"])
def test_an_error_in_a_blocking_layer_refuses_unless_it_is_allowed(layer: str) -> None:
    failed = LayerResult("failed", [Finding("dead", "error", "It does nothing.")])
    facts = GateFacts(report=report(layers={**LAYERS, layer: failed}), quality=SETS)
    decision = decide(DEFAULT, facts)
    assert (decision.allowed, decision.reason) == (False, "It does nothing.")
    assert decide(msgspec.structs.replace(DEFAULT, allow=["dead"]), facts).allowed is True
    assert decide(msgspec.structs.replace(DEFAULT, blocking=()), facts).allowed is True


def test_a_blocking_layer_that_was_skipped_refuses() -> None:
    facts = GateFacts(
        report=report(layers={**LAYERS, "effect": LayerResult("skipped", reason="no room.")}), quality=SETS
    )
    assert decide(DEFAULT, facts).allowed is False
    assert decide(msgspec.structs.replace(DEFAULT, skip=["effect"]), facts).allowed is True


def test_a_loss_that_is_not_finite_refuses() -> None:
    found = report()
    broken = msgspec.structs.replace(found.evaluations[0], nats=[None, *found.evaluations[0].nats[1:]])
    decision = decide(DEFAULT, GateFacts(report=msgspec.structs.replace(found, evaluations=[broken]), quality=SETS))
    assert decision.allowed is False
    assert "not finite" in decision.reason


def adapter(rank: int) -> AdapterFacts:
    return AdapterFacts(
        peft_type="LORA", task_type=None, r=rank, max_rank=rank, ranks={}, alpha=1.0, use_rslora=False, use_dora=False,
        dtypes={}, modules=1, targets={}, modules_to_save=[], saved_tensors=0, has_embeddings=False, has_biases=False,
        tensors=2, parameters=2, tensor_bytes=8, base=None, revision=None, peft_version=None, mergeable=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("document", "changed", "allowed", "rule"),
    [
        ({"max_rank": 8}, {"adapter": adapter(8)}, True, "rank"),
        ({"max_rank": 8}, {"adapter": adapter(16)}, False, "rank"),
        ({"licences": ["mit"]}, {"meta": {"license": "mit"}}, True, "licence"),
        ({"licences": ["mit"]}, {"meta": {"license": "gpl"}}, False, "licence"),
        ({"licences": ["mit"]}, {}, False, "licence"),
        ({"fresh_days": 2}, {"age": 86400.0}, True, "freshness"),
        ({"fresh_days": 2}, {"age": 3 * 86400.0}, False, "freshness"),
        ({"approvals": {"count": 2}}, {"approvals": [("ann", "writer"), ("ben", "admin")]}, True, "approvals"),
        ({"approvals": {"count": 2}}, {"approvals": [("ann", "writer"), ("ann", "admin")]}, False, "approvals"),
        ({"approvals": {"count": 1, "role": "admin"}}, {"approvals": [("ann", "writer")]}, False, "approvals"),
        ({"quality": {"highest": {"acme/sql": 4.0}}}, {}, True, "quality:acme/sql:highest"),
        ({"quality": {"highest": {"acme/sql": 1.0}}}, {}, False, "quality:acme/sql:highest"),
    ],
)
def test_each_field_of_a_policy_is_asked(document, changed, allowed: bool, rule: str) -> None:
    decision = decide(parse_policy(document), GateFacts(**{"report": report(), "quality": SETS, **changed}))
    assert decision.allowed is allowed
    assert states(decision)[rule] == ("passed" if allowed else "failed")


ANN, BEN, EVE = Signer(), Signer(curve=True), Signer()


@pytest.mark.parametrize(
    ("count", "signers", "allowed"),
    [
        (1, [], False),
        (1, [ANN], True),
        (1, [BEN], True),
        (1, [EVE], False),
        (2, [ANN], False),
        (2, [ANN, ANN], False),
        (2, [ANN, EVE], False),
        (2, [ANN, BEN, EVE], True),
    ],
)
def test_so_many_of_the_named_keys_must_have_signed(count: int, signers: list[Signer], allowed: bool) -> None:
    policy = parse_policy({"signatures": {"keys": [ANN.pem, BEN.public.text], "count": count}})
    facts = GateFacts(report=report(), quality=SETS, signers=[signer.public.key_id for signer in signers])
    decision = decide(policy, facts)
    assert decision.allowed is allowed
    check = next(check for check in decision.checks if check.rule == "signatures")
    named = {ANN.public.key_id, BEN.public.key_id}
    assert set(check.evidence["signed"]) == named & set(facts.signers)
    assert set(check.evidence["lacking"]) == named - set(facts.signers)
    assert "signatures" not in states(decide(DEFAULT, facts))


def test_a_policy_of_keys_means_the_same_however_they_are_written() -> None:
    lines = parse_policy({"signatures": {"keys": [ANN.pem]}})
    assert lines.digest == parse_policy({"signatures": {"keys": [ANN.public.text]}}).digest
    assert lines.digest != parse_policy({"signatures": {"keys": [BEN.pem]}}).digest
    assert lines.signatures.keys == [ANN.public.text]


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"keys": ["ac me"]}, r"signatures\.keys\[0\]: .* neither PEM nor base64"),
        (
            {"keys": [ANN.pem, "AAAA"]},
            r"signatures\.keys\[1\]: .* not a SubjectPublicKeyInfo of an Ed25519 or P-256 key",
        ),
        ({"keys": [ANN.pem, ANN.public.text]}, "twice"),
        ({"keys": [ANN.pem], "count": 2}, "requires 2 signatures by 1 keys"),
        ({"count": 2}, "requires 2 signatures by 0 keys"),
        ({"keys": [ANN.pem], "count": 0}, "malformed"),
        ({"keys": ANN.pem}, "malformed"),
    ],
)
def test_keys_that_can_never_be_met_are_refused(document, told: str) -> None:
    with pytest.raises(RegistryError, match=told):
        parse_policy({"signatures": document})


@pytest.mark.parametrize(
    ("asked", "allowed", "told"),
    [
        ({"pick.acc": 0.75}, True, "pick.acc is 0.75 (base: 0.25); the minimum is 0.75."),
        ({"pick.acc": 0.76}, False, "pick.acc is 0.75 (base: 0.25); the minimum is 0.76."),
        ({"pick.acc,strict": 0.5}, True, "pick.acc,strict is 0.5 (base: not finite); the minimum is 0.5."),
        ({"pick.loss": -9.0}, False, "pick.loss is not finite (base: 0); the minimum is -9."),
        ({"pick.f1": 0.5}, None, "The report has no pick.f1; it has pick.acc, pick.acc,strict, pick.loss."),
        ({"other.acc": 0.5, "pick.acc": 0.5}, None, "The report has no other.acc; it has pick.acc"),
        ({"other.acc": 0.5, "pick.acc": 0.9}, False, "the minimum is 0.9."),
    ],
)
def test_tasks_reach_their_least_values(asked: dict[str, float], allowed: bool | None, told: str) -> None:
    metrics = {
        "acc": TaskMetric(0.75, 0.2, 0.25, 0.2), "acc,strict": TaskMetric(0.5, None, None, None),
        "loss": TaskMetric(None, None, 0.0, None),
    }  # fmt: skip
    found = msgspec.structs.replace(report(), tasks={"pick": TaskResult("sha256:cc", 4, metrics)})
    decision = decide(parse_policy({"behaviour": {"tasks": asked}}), GateFacts(report=found, quality=SETS))
    assert decision.allowed is allowed
    checks = [check for check in decision.checks if check.rule.startswith("task:")]
    assert {check.rule for check in checks} == {f"task:{name}" for name in asked}
    assert any(told in check.message for check in checks)


def test_tasks_that_were_not_run_are_missing() -> None:
    policy = parse_policy({"behaviour": {"tasks": {"pick.acc": 0.5}}})
    decision = decide(policy, GateFacts(report=report(), quality=SETS))
    assert (decision.allowed, decision.reason) == (None, "The report has no pick.acc: no task was run.")
    assert not [rule for rule in states(decide(DEFAULT, GateFacts(report=report(), quality=SETS))) if "task" in rule]


def test_forgetting_is_judged_where_a_limit_is_set() -> None:
    general = {"sha256:aa": "acme/general"}
    facts = GateFacts(report=report(0.2), forgetting=general)
    assert decide(DEFAULT, facts).allowed is True
    assert decide(parse_policy({"forgetting": {"most": 0.1}}), facts).allowed is False
    assert decide(parse_policy({"forgetting": {"most": 0.3}}), facts).allowed is True


@pytest.mark.parametrize(
    "document", [{"nonsense": 1}, {"schema": 2}, {"quality": {"level": 2}}, [], {"blocking": ["taste"]}]
)
def test_a_malformed_policy_is_refused_by_its_field(document) -> None:
    with pytest.raises(RegistryError, match="malformed"):
        parse_policy(document)


def test_the_digest_of_a_policy_is_of_its_meaning() -> None:
    assert parse_policy({}).digest == DEFAULT.digest == parse_policy({"quality": {}}).digest
    assert parse_policy({"max_rank": 8}).digest != DEFAULT.digest


# The testbed's adapters, by the losses that were measured when they were made.

GOOD = ["dora-r8-sql", "ia3-sql", "lora-embed-prose", "lora-lmhead-cheader", "lora-patterns-python",
        "lora-r16-alllinear-prose", "lora-r8-qv-python", "prefix-python", "rslora-r16-cheader", "series-sql/v1", "series-sql/v2"]  # fmt: skip


def losses(path: Path) -> dict[str, dict[str, list[list[float]]]]:
    return json.loads((path / "per_record_nll.json").read_text("utf-8"))


def of_testbed(table, name: str, order: list[int] | None = None) -> Validation:
    ((domain, records),) = table[name].items()
    base = table["base"][domain]
    assert [tokens for _, tokens in records] == [tokens for _, tokens in base]
    order = order if order is not None else list(range(len(records)))
    found = Evaluation("sha256:aa", f"{domain}:v1", "quality", [records[i][0] for i in order], [base[i][0] for i in order], [records[i][1] for i in order])  # fmt: skip
    return Validation(
        version=name, base="b", datasets={"quality": ["sha256:aa"]}, environment={}, layers=LAYERS, evaluations=[found]
    )


@pytest.mark.parametrize("name", GOOD)
def test_no_false_alarm_over_fifty_resamples(name: str) -> None:
    table, rng = losses(require_testbed()), random.Random(f"resamples of {name}")
    count = len(next(iter(table[name].values())))
    for order in [None, *([rng.randrange(count) for _ in range(count)] for _ in range(50))]:
        assert decide(DEFAULT, GateFacts(report=of_testbed(table, name, order), quality=SETS)).allowed is True


def test_the_series_is_judged_as_it_was_made() -> None:
    table, rng = losses(require_testbed()), random.Random("series")
    for order in [None, *([rng.randrange(61) for _ in range(61)] for _ in range(50))]:
        one, two, three = (of_testbed(table, f"series-sql/v{number}", order) for number in (1, 2, 3))
        better = decide(DEFAULT, GateFacts(report=two, target=one, has_target=True, quality=SETS))
        assert better.allowed is True
        assert "better than the tag's current target" in better.checks[-1].message
        worse = decide(DEFAULT, GateFacts(report=three, target=two, has_target=True, quality=SETS))
        assert worse.allowed is False
        assert "worse than the base" in worse.reason
        assert "worse than the tag's current target" in worse.checks[-1].message
        assert decide(DEFAULT, GateFacts(report=one, target=two, has_target=True, quality=SETS)).allowed is False
