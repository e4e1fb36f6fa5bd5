"""Validation of a subject: all layers in order, and the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from lora_contract.adapter.config import parse_config
from lora_contract.adapter.facts import AdapterFacts
from lora_contract.errors import RegistryError
from lora_contract.findings import Finding
from lora_contract.serveability import serveability
from lora_contract.validation import (
    DATASET_ROLES,
    Answers,
    DatasetRole,
    Evaluation,
    Layer,
    LayerResult,
    TaskResult,
    Validation,
)
from lora_kernels.validating.base_losses import BaseLosses, Measured
from lora_kernels.validating.subject import Subject

if TYPE_CHECKING:
    from lora_kernels.validating.harness import Tasks

Progress = Callable[[str, int, int], None]
"""(step, done, total)"""

_LAYERS: Final[tuple[Layer, ...]] = (
    "tokenizer",
    "serveability",
    "numbers",
    "effect",
    "agreement",
    "quality",
    "forgetting",
    "behaviour",
)


def validate(
    subject: Subject, *, progress: Progress | None = None, base_losses: BaseLosses | None = None
) -> Validation:
    """Run every layer except those to skip. An adapter whose structure fails is not loaded, and the other layers are
    skipped for that reason.

    base_losses: to reuse the losses of the base between adapters; None computes them.

    Raises RegistryError for a base or an evaluation set that cannot be read.
    """
    from lora_kernels.validating.environment import environment
    from lora_kernels.validating.harness import opened
    from lora_kernels.validating.libraries import import_libraries
    from lora_kernels.validating.structure import structure
    from lora_kernels.validating.threads import few_threads

    progress = progress or (lambda _what, _done, _total: None)
    progress("structure", 0, 1)
    result, facts = structure(subject)
    layers: dict[Layer, LayerResult] = {"structure": result}
    evaluations: list[Evaluation] = []
    answers: dict[str, Answers] = {}
    tasks: dict[str, TaskResult] = {}
    if result.state == "failed" or facts is None:
        layers |= {layer: LayerResult("skipped", reason="the structure is broken.") for layer in _to_run(subject)}
    else:
        import_libraries()
        _check_files(subject, facts, layers)
        folders = subject.tasks if "behaviour" in _to_run(subject) else ()
        with opened(folders) as harness, few_threads(subject.base, subject.precision):
            _measure(subject, layers, evaluations, answers, tasks, harness, progress, base_losses or BaseLosses())
    return Validation(
        version=subject.version,
        base=subject.base_digest,
        precision=subject.precision,
        datasets=_digests(subject),
        environment=environment(*(["lm_eval"] if tasks else [])),
        layers=layers,
        evaluations=evaluations,
        answers=answers,
        tasks=tasks,
    )


def _check_files(subject: Subject, facts: AdapterFacts, layers: dict[Layer, LayerResult]) -> None:
    """Run the layers that load no model."""
    from lora_kernels.checkpoint.folders import read_base
    from lora_kernels.validating.tokenizer import tokenizer

    run = _to_run(subject)
    config = parse_config((subject.adapter / "adapter_config.json").read_bytes())
    brings = facts.has_embeddings or bool(config.trainable_tokens)
    rows = read_base(subject.base)[0].embedding_rows or 0
    found = tokenizer(subject.base, subject.adapter, rows=rows, brings_embedding=brings)
    if "tokenizer" in run:
        layers["tokenizer"] = found
    if "serveability" in run:
        adds = any(finding.code in ("tokens-added", "tokens-without-embedding") for finding in found.findings)
        runtimes = serveability(config, facts, adds_tokens=adds)
        findings = [
            Finding(
                f"{state.state}-by-{name}".replace("wrong-by", "wrong-in"),
                "note",
                " ".join(state.problems),
                hint=state.conversion,
            )
            for name, state in runtimes.items()
            if state.state != "serves"
        ]
        layers["serveability"] = LayerResult("passed", findings, {"runtimes": msgspec.to_builtins(runtimes)})


def _measure(
    subject: Subject,
    layers: dict[Layer, LayerResult],
    evaluations: list[Evaluation],
    answers: dict[str, Answers],
    tasks: dict[str, TaskResult],
    harness: Tasks,
    progress: Progress,
    known: BaseLosses,
) -> None:
    """Run the layers that load models or merge."""
    from lora_kernels.checkpoint.folders import read_adapter
    from lora_kernels.validating import losses, models
    from lora_kernels.validating.agreement import agreement
    from lora_kernels.validating.behaviour import answered
    from lora_kernels.validating.effect import effect
    from lora_kernels.validating.numbers import numbers

    run = _to_run(subject)
    layers |= {layer: LayerResult("skipped", reason=why) for layer, why in subject.skip.items()}
    if "numbers" in run:
        progress("numbers", 0, 1)
        layers["numbers"] = numbers(subject.base, subject.adapter)
    tokenizer = models.load_tokenizer(subject.base)
    sets = [
        (one, losses.encode(tokenizer, losses.read_records(one.path)))
        for one in subject.sets
        if one.role != "behaviour"
    ]
    sets = [(one, items) for one, items in sets if one.role in run]
    probes = losses.probes(tokenizer, [item for _, items in sets for item in items])

    def measured(model: Any, label: str) -> Measured:
        return losses.probe_logits(model, probes), [
            losses.losses(model, items, partial(_count, progress, f"{one.name}, {label}", len(items)))
            for one, items in sets
        ]

    model = models.load_base(subject.base, subject.precision)
    kind = type(model)
    before, base_nats = known.get(
        (subject.base, subject.base_digest, subject.precision, tuple(one for one, _ in sets)),
        partial(measured, model, "base"),
    )
    base_scores = harness.scores(model, tokenizer, partial(progress, "tasks, base"))
    try:
        model = models.attach(model, subject.adapter)
    except RegistryError as error:
        layers["effect"] = LayerResult("failed", [Finding("not-loaded", "error", error.detail)])
        remaining = [layer for layer in run if layer not in layers]
        layers |= {layer: LayerResult("skipped", reason="PEFT cannot load the adapter.") for layer in remaining}
        return
    after, nats = measured(model, "adapter")
    if "effect" in run:
        records = [
            pair
            for (one, items), nats_of in zip(sets, base_nats, strict=True)
            if one.role == "quality"
            for pair in zip(items, nats_of, strict=True)
        ]
        header = read_adapter(subject.adapter).header
        layers["effect"] = effect(model, header, before, after, records, partial(progress, "ablation of each module"))
    if "behaviour" in run:
        prompts = [one for one in subject.sets if one.role == "behaviour"]
        answers |= {one.digest: answered(model, tokenizer, one, progress) for one in prompts}
        scores = harness.scores(model, tokenizer, partial(progress, "tasks, adapter"))
        tasks |= harness.results(base_scores, scores)
        layers["behaviour"] = _behaviour(answers, tasks)
    del model
    if "agreement" in run:
        layers["agreement"] = agreement(
            subject.base,
            subject.adapter,
            probes,
            after,
            lambda form: progress(f"merged to {form}", 0, 1),
            precision=subject.precision,
            kind=kind,
            accelerator=models.accelerator(subject.base),
        )
    for (one, items), mine, theirs in zip(sets, nats, base_nats, strict=True):
        tokens = [item.tokens for item in items]
        evaluations.append(Evaluation(one.digest, one.name, one.role, mine, theirs, tokens))
    layers |= _losses(evaluations)


def _count(progress: Progress, step: str, total: int, done: int) -> None:
    progress(step, done, total)


def _losses(evaluations: list[Evaluation]) -> dict[Layer, LayerResult]:
    """The layers of losses, as evidence: a policy decides whether it suffices."""
    by_role: dict[DatasetRole, list[Evaluation]] = defaultdict(list)
    for found in evaluations:
        by_role[found.role].append(found)
    layers: dict[Layer, LayerResult] = {}
    for role, group in by_role.items():
        findings = [
            Finding("loss-not-finite", "error", f"The loss on {found.name} is NaN or infinite.")
            for found in group
            if None in found.nats
        ]
        facts: dict[str, Any] = {
            found.name: {"loss": found.loss, "base": found.base_loss, "records": len(found.tokens)}
            for found in group
            if None not in found.nats
        }
        layers[role] = LayerResult("failed" if findings else "passed", findings, facts)
    return layers


def _behaviour(answers: dict[str, Answers], tasks: dict[str, TaskResult]) -> LayerResult:
    facts: dict[str, Any] = {found.name: found.met for found in answers.values()}
    facts |= {
        f"{task}.{name}": {"value": one.value, "base": one.base}
        for task, found in tasks.items()
        for name, one in found.metrics.items()
    }
    return LayerResult("passed", facts=facts)


def _to_run(subject: Subject) -> list[Layer]:
    """The layers to run."""
    roles: set[Layer] = {one.role for one in subject.sets}
    if subject.tasks:
        roles.add("behaviour")
    wanted = [layer for layer in _LAYERS if layer not in DATASET_ROLES or layer in roles]
    return [layer for layer in wanted if layer not in subject.skip]


def _digests(subject: Subject) -> dict[DatasetRole, list[str]]:
    found: dict[DatasetRole, list[str]] = {role: [] for role in DATASET_ROLES}
    for one in subject.sets:
        found[one.role].append(one.digest)
    return {role: sorted(digests) for role, digests in found.items()}
