"""Adapters of the test bed on their base: the losses that were measured when they were made, every good one let through,
every broken one refused by the layer that it is for, and faults planted in a good one found or shown to change little."""

from __future__ import annotations

import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lora_contract.policy import DEFAULT, Decision, GateFacts, decide
from lora_contract.validation import Layer, Precision, Validation, parse_validation
from lora_kernels.validating import BaseLosses, EvaluationSet, Subject, validate
from tests.kernels.validating.training import train
from tests.support.testbed import require_testbed

DOMAINS = {
    "dora-r8-sql": "sql",
    "ia3-sql": "sql",
    "lora-embed-prose": "prose",
    "lora-lmhead-cheader": "cheader",
    "lora-patterns-python": "python",
    "prefix-python": "python",
    "rslora-r16-cheader": "cheader",
    "series-sql/v1": "sql",
}
BROKEN = [
    "duplicate-json-keys",
    "header-length-8gb",
    "missing-lora-b",
    "module-not-in-base",
    "nan-one-tensor",
    "overwrites-base-norm",
    "pickle-bin",
    "rank-differs",
    "truncated-safetensors",
    "wrong-shape-one-module",
    "zero-adapter",
]
PULLED = {"module-pulls-back", "update-too-strong", "modules-do-not-help", "module-adds-nothing"}
ONLY_LOSSES: dict[Layer, str] = dict.fromkeys(("numbers", "effect", "agreement"), "not asked for.")
NO_AGREEMENT: dict[Layer, str] = {"agreement": "not asked for."}
LOSSES_ALONE: dict[Layer, str] = {"effect": "not asked for.", **NO_AGREEMENT}


KNOWN = defaultdict[str, BaseLosses](BaseLosses)
"""By domain."""


def run(
    adapter: Path, domain: str, skip: dict[Layer, str] | None = None, base_losses: BaseLosses | None = None
) -> Validation:
    bed = require_testbed()
    chosen = EvaluationSet("quality", "sha256:aa", domain, bed / "data" / f"{domain}_eval.jsonl")
    subject = Subject(bed / "base", adapter, "sha256:version", "sha256:base", (chosen,), skip or {})
    return validate(subject, base_losses=base_losses or KNOWN[domain])


def judged(report: Validation, domain: str, holder: Validation | None = None) -> Decision:
    skipped = [layer for layer, result in report.layers.items() if result.reason == NO_AGREEMENT["agreement"]]
    policy = msgspec.structs.replace(DEFAULT, skip=skipped)
    return decide(
        policy, GateFacts(report=report, target=holder, has_target=holder is not None, quality={"sha256:aa": domain})
    )


@cache
def second() -> Validation:
    return run(require_testbed() / "adapters" / "series-sql" / "v2", "sql")


def test_losses_are_those_that_were_measured() -> None:
    table = json.loads((require_testbed() / "per_record_nll.json").read_text("utf-8"))
    found = second().evaluations[0]
    for mine, theirs in ((found.nats, table["series-sql/v2"]["sql"]), (found.base_nats, table["base"]["sql"])):
        assert found.tokens == [tokens for _, tokens in theirs]
        np.testing.assert_allclose(np.array(mine, float), [nats for nats, _ in theirs], rtol=1e-5)


def test_the_base_is_measured_once_for_the_same_sets_and_again_for_others(tmp_path: Path) -> None:
    bed = require_testbed()
    steps: list[str] = []
    few = tmp_path / "few.jsonl"
    few.write_bytes(b"".join((bed / "data" / "sql_eval.jsonl").read_bytes().splitlines(keepends=True)[:4]))
    known = BaseLosses()
    reports = []
    cases: list[tuple[str, Precision]] = [("a", "float32"), ("a", "float32"), ("b", "float32"), ("b", "bfloat16")]
    for digest, precision in cases:
        chosen = EvaluationSet("quality", digest, "few", few)
        subject = Subject(
            bed / "base", bed / "adapters" / "ia3-sql", "v", "base", (chosen,), ONLY_LOSSES, precision=precision
        )
        reports.append(validate(subject, progress=lambda step, _done, _total: steps.append(step), base_losses=known))
    assert [step for step in steps if step == "few, base"] == ["few, base"] * 3
    assert reports[0].evaluations == reports[1].evaluations
    assert reports[2].evaluations[0].base_nats != reports[3].evaluations[0].base_nats


def test_a_report_goes_through_its_bytes_and_comes_again_the_same() -> None:
    report = second()
    assert parse_validation(report.to_bytes()) == report
    again = run(require_testbed() / "adapters" / "series-sql" / "v2", "sql", base_losses=BaseLosses())
    assert again.digest == report.digest
    assert list(report.layers) == [
        "structure",
        "tokenizer",
        "serveability",
        "numbers",
        "effect",
        "agreement",
        "quality",
    ]
    assert {"torch", "peft", "transformers"} <= set(report.environment)


@pytest.mark.parametrize("name", list(DOMAINS))
def test_good_adapters_are_let_through_on_their_own_domain(name: str) -> None:
    report = run(require_testbed() / "adapters" / name, DOMAINS[name])
    decision = judged(report, DOMAINS[name])
    assert decision.allowed is True, decision
    assert not PULLED & {finding.code for finding in report.findings}
    forms = report.layers["agreement"].facts["forms"]
    assert ("refused" in forms["bfloat16"]) == (name == "prefix-python")


def resampled(report: Validation, order: list[int]) -> Validation:
    """As if these records had been drawn, of which some come twice."""
    (found,) = report.evaluations
    nats, base, tokens = ([values[i] for i in order] for values in (found.nats, found.base_nats, found.tokens))
    drawn = msgspec.structs.replace(found, nats=nats, base_nats=base, tokens=tokens)
    return msgspec.structs.replace(report, evaluations=[drawn])


def test_a_copy_trained_again_with_another_seed_is_neither_better_nor_worse(tmp_path: Path) -> None:
    """Nor a false alarm in 50 resamples of the records, whichever of the two is in service."""
    bed = require_testbed()
    lines = (bed / "data" / "python_train.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    for seed in (1, 2):
        train(bed / "base", texts, tmp_path / str(seed), seed=seed)
    one, other = (run(tmp_path / str(seed), "python", LOSSES_ALONE) for seed in (1, 2))
    assert one.evaluations[0].nats != other.evaluations[0].nats
    count, rng = len(one.evaluations[0].tokens), random.Random("resamples")
    for order in [[*range(count)], *([rng.randrange(count) for _ in range(count)] for _ in range(50))]:
        for new, held in ((one, other), (other, one)):
            decision = judged(resampled(new, order), "python", resampled(held, order))
            assert decision.allowed is True, decision
            assert "neither better nor worse" in decision.checks[-1].message


def test_the_regression_is_refused_for_its_losses() -> None:
    report = run(require_testbed() / "adapters" / "series-sql" / "v3", "sql", LOSSES_ALONE)
    decision = judged(report, "sql", second())
    assert decision.allowed is False
    assert "worse than the base" in decision.reason


@pytest.mark.parametrize("case", BROKEN)
def test_broken_adapters_are_refused_by_their_structure_and_not_loaded(case: str) -> None:
    report = run(require_testbed() / "broken" / case / "adapter", "python")
    decision = judged(report, "python")
    assert decision.allowed is False
    assert report.layers["structure"].state == "failed"
    assert report.layers["effect"].state == "skipped"
    assert [check.rule for check in decision.checks if check.state == "failed"] == ["layer:structure"]


Tensors = dict[str, np.ndarray[Any, Any]]


def key(layer: int, module: str, half: str) -> str:
    return f"base_model.model.model.layers.{layer}.{module}.lora_{half}.weight"


def swap_halves(tensors: Tensors, config: dict[str, Any]) -> None:
    """Nothing in the shapes tells it: the projection is square."""
    for layer in range(4):
        a, b = (key(layer, "self_attn.q_proj", half) for half in "AB")
        tensors[a], tensors[b] = np.ascontiguousarray(tensors[b].T), np.ascontiguousarray(tensors[a].T)


def empty_layer(tensors: Tensors, config: dict[str, Any]) -> None:
    for name in [name for name in tensors if ".layers.1." in name and "lora_B" in name]:
        tensors[name] = np.zeros_like(tensors[name])


def flip_sign(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[key(2, "mlp.down_proj", "B")] *= -1


def double_alpha(tensors: Tensors, config: dict[str, Any]) -> None:
    config["lora_alpha"] *= 2


def half_more_alpha(tensors: Tensors, config: dict[str, Any]) -> None:
    config["lora_alpha"] *= 1.5


def flip_the_sign_of_a_weak_one(tensors: Tensors, config: dict[str, Any]) -> None:
    """Of the 28 modules it is the one that the loss depends least on."""
    tensors[key(1, "self_attn.k_proj", "B")] *= -1


def exchange_two_layers(tensors: Tensors, config: dict[str, Any]) -> None:
    for half in "AB":
        one, other = key(0, "mlp.down_proj", half), key(1, "mlp.down_proj", half)
        tensors[one], tensors[other] = tensors[other], tensors[one]


def move_one_pair(tensors: Tensors, config: dict[str, Any]) -> None:
    """The rows of A no longer stand in the order of the columns of B."""
    name = key(2, "mlp.up_proj", "A")
    tensors[name] = np.roll(tensors[name], 1, axis=0)


def turn_on_rslora(tensors: Tensors, config: dict[str, Any]) -> None:
    config["use_rslora"] = True


def other_base(tensors: Tensors, config: dict[str, Any]) -> None:
    """As trained on a base of the same shape, whose hidden units stand in another order."""
    order = np.random.default_rng(0).permutation(256)
    for name in [name for name, values in tensors.items() if "lora_A" in name and values.shape[1] == 256]:
        tensors[name] = np.ascontiguousarray(tensors[name][:, order])


def overflow(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[key(0, "self_attn.q_proj", "B")] *= np.float32(3e6)


def noise(tensors: Tensors, config: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    for name, values in tensors.items():
        drawn = (rng.standard_normal(values.shape) * values.std()).astype(values.dtype)
        tensors[name] = np.where(rng.random(values.shape) < 0.01, drawn, values)


Plant = Callable[[Tensors, dict[str, Any]], None]
ABLATED: set[Plant] = {
    swap_halves,
    flip_sign,
    half_more_alpha,
    flip_the_sign_of_a_weak_one,
    exchange_two_layers,
    move_one_pair,
    other_base,
}
"""Those of which a test asks what their modules contribute."""
Planted = Callable[[Plant], Validation]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Reports of the second version with a fault, each made once."""
    from safetensors.numpy import load_file, save_file

    @cache
    def make(plant: Plant) -> Validation:
        source = require_testbed() / "adapters" / "series-sql" / "v2"
        tensors = load_file(source / "adapter_model.safetensors")
        config = json.loads((source / "adapter_config.json").read_text("utf-8"))
        plant(tensors, config)
        folder = tmp_path_factory.mktemp("planted") / "adapter"
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config))
        skip = NO_AGREEMENT if plant in ABLATED else LOSSES_ALONE
        return run(folder, "sql", {"effect": "not asked for."} if plant is overflow else skip)

    return make


@pytest.mark.parametrize(
    "plant", [swap_halves, empty_layer, flip_sign, double_alpha, turn_on_rslora, other_base, overflow]
)
def test_planted_faults_are_refused_against_the_version_in_service(planted: Planted, plant: Plant) -> None:
    decision = judged(planted(plant), "sql", second())
    assert decision.allowed is False
    states = {check.rule: check.state for check in decision.checks}
    assert states["quality:sql:holder"] == "failed"
    # Those that still are better than the base would pass without the comparison with what is in service.
    assert states["quality:sql:base"] == ("failed" if plant in (double_alpha, turn_on_rslora, overflow) else "passed")


@pytest.mark.parametrize(
    ("plant", "code", "where"),
    [
        (flip_sign, "module-pulls-back", "model.layers.2.mlp.down_proj"),
        (flip_the_sign_of_a_weak_one, "module-pulls-back", "model.layers.1.self_attn.k_proj"),
        (exchange_two_layers, "module-pulls-back", "model.layers.0.mlp.down_proj"),
        (move_one_pair, "module-pulls-back", "model.layers.2.mlp.up_proj"),
        (other_base, "modules-do-not-help", None),
    ],
)
def test_planted_faults_are_refused_where_nothing_is_in_service(
    planted: Planted, plant: Plant, code: str, where: str | None
) -> None:
    """Each leaves the adapter better than its base; what a module does for the loss tells it all the same."""
    decision = judged(report := planted(plant), "sql")
    assert decision.allowed is False
    assert {check.rule: check.state for check in decision.checks}["quality:sql:base"] == "passed"
    assert [check.rule for check in decision.checks if check.state == "failed"] == ["layer:effect"]
    (found,) = (finding for finding in report.layers["effect"].findings if finding.severity == "error")
    assert (found.code, where or found.where) == (code, found.where)


@pytest.mark.parametrize(
    ("plant", "code", "told"),
    [
        (swap_halves, "module-adds-nothing", "4 of 28 modules"),
        (half_more_alpha, "update-too-strong", "its scale is larger than in training"),
    ],
)
def test_planted_faults_are_told_where_nothing_is_in_service(
    planted: Planted, plant: Plant, code: str, told: str
) -> None:
    decision = judged(report := planted(plant), "sql")
    assert decision.allowed is True
    (found,) = (finding for finding in report.layers["effect"].findings if finding.code in PULLED)
    assert (found.code, found.severity) == (code, "warning")
    assert told in found.message


def test_noise_in_a_hundredth_of_the_weights_changes_less_than_another_seed_would(planted: Planted) -> None:
    decision = judged(planted(noise), "sql", second())
    evidence = next(check.evidence for check in decision.checks if check.rule == "quality:sql:holder")
    assert decision.allowed is True
    assert 0 < evidence["difference"] < 0.05 < evidence["least_effect"]


def test_the_numbers_name_an_empty_layer_and_an_update_larger_than_its_weight(planted: Planted) -> None:
    found = planted(empty_layer).layers["numbers"].findings
    assert [(finding.code, finding.where) for finding in found] == [("module-dead", "model.layers.1.mlp.down_proj")]
    assert "7 of 28 modules" in found[0].message


def test_an_overflow_in_one_type_is_told_of_that_type(planted: Planted) -> None:
    forms = planted(overflow).layers["agreement"].facts["forms"]
    assert "exceed the range of F16" in forms["float16"]["refused"]
    assert "refused" not in forms["bfloat16"]


def test_a_key_that_peft_has_no_place_for_is_named(tmp_path: Path) -> None:
    """The structure refuses such a file; the layer of effect would find it by itself."""
    from lora_kernels.checkpoint.folders import read_adapter
    from lora_kernels.validating import models
    from lora_kernels.validating.effect import effect

    bed = require_testbed()
    broken = bed / "broken" / "module-not-in-base" / "adapter"
    model = models.attach(models.load_base(bed / "base"), broken)
    probes = [np.zeros((1, 4))]
    found = effect(model, read_adapter(broken).header, probes, probes).findings
    named = {finding.where for finding in found if finding.code == "key-without-effect"}
    assert named == {key(9, "self_attn.q_proj", half) for half in "AB"}
    assert "no-effect" in {finding.code for finding in found}


def test_a_folder_that_peft_cannot_load_is_told(tmp_path: Path) -> None:
    from lora_contract.errors import RegistryError
    from lora_kernels.validating import models

    bed = require_testbed()
    shutil.copytree(bed / "broken" / "wrong-shape-one-module" / "adapter", tmp_path / "adapter")
    with pytest.raises(RegistryError, match="PEFT cannot load the adapter: RuntimeError"):
        models.attach(models.load_base(bed / "base"), tmp_path / "adapter")


def test_prompts_are_not_predicted(tmp_path: Path) -> None:
    """The loss of a completion is that of the text less that of the prompt before it, where the tokens are the same."""
    from lora_contract.dataset import Record
    from lora_kernels.validating import losses, models

    bed = require_testbed()
    tokenizer, model = models.load_tokenizer(bed / "base"), models.load_base(bed / "base")
    parts = losses.encode(
        tokenizer, [Record("select 1;\n"), Record("select 2;\n", "select 1;\n"), Record("select 1;\nselect 2;\n")]
    )
    assert parts[0].ids + parts[1].ids[parts[1].first :] == parts[2].ids == parts[1].ids
    one, rest, whole = (value or 0.0 for value in losses.losses(model, parts, lambda _done: None))
    assert one + rest == pytest.approx(whole, rel=1e-5)
    assert parts[0].tokens + parts[1].tokens == parts[2].tokens
