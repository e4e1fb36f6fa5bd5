"""The check of an adapter against a base, shared by the client before a push and the server after it.

It reads through functions of the caller, reports all faults of the adapter, and never raises for one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from shlex import quote
from typing import Final

import msgspec

from lora_contract.adapter import lora
from lora_contract.adapter.agreement import read_config
from lora_contract.adapter.config import MAX_CONFIG_BYTES, AdapterConfig
from lora_contract.adapter.copies import ReadBase
from lora_contract.adapter.coverage import check_coverage
from lora_contract.adapter.facts import AdapterFacts, gather_facts, joined
from lora_contract.adapter.files import AdapterFile, ReadFile, check_files, paths
from lora_contract.adapter.headed import headed
from lora_contract.adapter.numbers import check_values
from lora_contract.adapter.other_model import report_other_width
from lora_contract.adapter.part_of_base import report_part
from lora_contract.adapter.parts import held_components, parts_of
from lora_contract.adapter.patterns import catastrophic_pattern, targets
from lora_contract.adapter.pipeline_metadata import check_metadata
from lora_contract.adapter.placing_saved import check_head, check_names, check_resized
from lora_contract.adapter.report import CONFIG, WEIGHTS, CheckReport
from lora_contract.adapter.scaling import ModuleScale, Scales, scales
from lora_contract.adapter.spelling import report_older_names
from lora_contract.adapter.spoiled import restore_names
from lora_contract.adapter.structure import build
from lora_contract.adapter.training import training_facts
from lora_contract.base import BaseFingerprint
from lora_contract.errors import RegistryError
from lora_contract.findings import Finding
from lora_contract.modules import BaseModules, modules_of
from lora_contract.pipelines import LORA_FILE
from lora_contract.regex import Budget
from lora_contract.tensors import MAX_ADAPTER_HEADER_BYTES, Header, read_header

__all__ = ["AdapterFacts", "AdapterFile", "CheckResult", "ReadBase", "ReadFile", "check_adapter"]


_IMPORT: Final = (
    f"Import it: `lora-reg import FOLDER --base NAME` makes a version of {LORA_FILE}, which diffusers and its "
    "training scripts write."
)


class CheckResult(msgspec.Struct, frozen=True):
    """The result of a check. findings: in the order they were made. facts: None if the files could not be parsed."""

    findings: list[Finding]
    facts: AdapterFacts | None

    @property
    def accepted(self) -> bool:
        return not any(finding.severity == "error" for finding in self.findings)


def check_adapter(
    files: Sequence[AdapterFile],
    read: ReadFile,
    base: BaseFingerprint,
    *,
    base_aliases: Collection[str],
    base_name: str = "",
    accept_base: bool = False,
    read_base: ReadBase | None = None,
) -> CheckResult:
    """Check an adapter's files against a base.

    Raises what `read` raises.

    Args:
        read: returns bytes of a file by (path, offset, length).
        base_aliases: all values of `base_model_name_or_path` for this base.
        base_name: its name in the registry, for hints.
        accept_base: accept the base even if adapter_config.json names a different one.
        read_base: returns bytes of a base tensor by (tensor, offset, length); None if the registry has no weights of
            the base.
    """
    report = CheckReport()
    facts: AdapterFacts | None = None
    check_files(files, read, report)
    sizes = paths(files)
    for required in (CONFIG, WEIGHTS):
        if required not in sizes:
            report.add(
                "file-missing",
                f"{required} is missing; an adapter consists of {CONFIG} and {WEIGHTS}.",
                file=required,
                expected=required,
                hint=_IMPORT
                if LORA_FILE in sizes
                else "Save the adapter with PEFT's save_pretrained and push that folder.",
            )
    config = _read_config(sizes, read, report)
    header = _read_header(sizes, read, report)
    if config is not None:
        _check_base_name(config, base_aliases, base_name, accept_base, report)
        _check_init(config, report)
    if config is not None and header is not None:
        facts = _check_parts(config, header, read, base, read_base, base_name, report)
    if facts is not None:
        facts = msgspec.structs.replace(facts, training=training_facts(sizes, read))
    return CheckResult(report.findings(), facts)


def _check_parts(
    config: AdapterConfig,
    header: Header,
    read: ReadFile,
    base: BaseFingerprint,
    read_base: ReadBase | None,
    base_name: str,
    report: CheckReport,
) -> AdapterFacts | None:
    """Check an adapter, or, on a pipeline, each of its parts against its component."""
    try:
        parts = parts_of(base, config, header)
    except RegistryError as error:
        if error.code != "rejected":
            raise
        report.add_error("component-unknown", error, file=CONFIG)
        return None
    facts: dict[str, AdapterFacts] = {}
    for part in parts:
        with report.within(part.component):
            found = _check_together(part.config, part.header, read, part.base, read_base, base_name, report)
        if found is not None:
            facts[part.component] = found
    if len(facts) < len(parts):
        return None
    if held_components(header) and parts[0].component:
        report.forget(frozenset({"older-names"}))  # diffusers reads either
        check_metadata(parts, report)
    return joined(facts, config) if parts[0].component else facts[""]


def _check_together(
    config: AdapterConfig,
    header: Header,
    read: ReadFile,
    base: BaseFingerprint,
    read_base: ReadBase | None,
    base_name: str,
    report: CheckReport,
) -> AdapterFacts | None:
    modules = modules_of(base)
    header = restore_names(header, config.peft_type, modules, report)
    head = headed(base, config, header.tensors)
    if head is not None:
        base, modules = head.base, modules_of(head.base)
        check_head(head, report)
    budget = Budget()
    try:
        catastrophic = catastrophic_pattern(config, modules.modules, budget)
        if catastrophic is not None:
            key, pattern = catastrophic
            report.add(
                "pattern-refused",
                f"{key} of {CONFIG} has the pattern {pattern[:80]!r}, which causes catastrophic backtracking in PEFT "
                "(ReDoS).",
                file=CONFIG,
                where=key,
                found=pattern[:200],
                expected="a pattern without nested quantifiers",
                hint="List the modules by name instead of using a pattern.",
            )
        targeted = targets(config, budget)
        scale = _scales(config, modules, targeted, budget)
        structure = build(config, header, base, modules, scale, report, new=() if head is None else head.new)
        check_resized(structure, base_name, report)
        check_names(config, structure, modules, report)
        check_coverage(config, structure, modules, targeted, report)
        report_other_width(config, header, modules, report)
        report_part(config, header, modules, report)
        report_older_names(config, header, base, modules, targeted, report)
        check_values(config, header, structure, scale, read, read_base, report)
        return gather_facts(config, header, structure, scale, head)
    except RegistryError as error:
        if error.code != "rejected":
            raise
        report.add_error("pattern-refused", error, file=CONFIG)
        return None


def _scales(config: AdapterConfig, modules: BaseModules, targeted: Callable[[str], bool], budget: Budget) -> Scales:
    """Scales with the rank and alpha of an attention for its output projection, if it is adapted as a whole."""
    own = scales(config, budget)

    def of(path: str) -> ModuleScale:
        attention = modules.attention_of(path)
        return own(path if attention is None or not targeted(attention) else attention)

    return of


def _read_config(sizes: dict[str, int], read: ReadFile, report: CheckReport) -> AdapterConfig | None:
    size = sizes.get(CONFIG)
    if size is None:
        return None
    try:
        if size > MAX_CONFIG_BYTES:
            raise RegistryError("rejected", f"{CONFIG} has {size} bytes; the maximum is {MAX_CONFIG_BYTES}.")
        return read_config(read(CONFIG, 0, size))
    except RegistryError as error:
        if error.code != "rejected":
            raise
        report.add_error("bad-config", error, file=CONFIG)
        return None


def _read_header(sizes: dict[str, int], read: ReadFile, report: CheckReport) -> Header | None:
    size = sizes.get(WEIGHTS)
    if size is None:
        return None
    try:
        header = read_header(read, WEIGHTS, size, MAX_ADAPTER_HEADER_BYTES)
    except RegistryError as error:
        if error.code != "rejected":
            raise
        report.add_error("bad-safetensors", error, file=WEIGHTS)
        return None
    if not header.tensors:
        report.add("no-tensors", f"{WEIGHTS} has no tensors.", hint="Save the adapter again; its weights are missing.")
        return None
    return header


def _check_base_name(
    config: AdapterConfig, aliases: Collection[str], base_name: str, accept: bool, report: CheckReport
) -> None:
    name = (config.base_model or "").rstrip("/")
    if not name:
        report.add("base-unnamed", f"{CONFIG} names no base model.", severity="note", file=CONFIG)
    elif name.casefold() in {alias.rstrip("/").casefold() for alias in aliases}:
        return
    elif is_local_path(name):
        report.add(
            "base-local-path",
            f"{CONFIG} names its base by the local path {name[:200]!r}, which does not identify it.",
            severity="note",
            file=CONFIG,
            where="base_model_name_or_path",
            found=name[:200],
        )
    else:
        report.add(
            "base-mismatch",
            f"{CONFIG} names the base {name[:200]!r}, which is not an alias of {base_name or 'the given base'}.",
            severity="note" if accept else "error",
            file=CONFIG,
            where="base_model_name_or_path",
            found=name[:200],
            expected=", ".join(sorted(aliases)) or None,
            hint=f"If it is this base: `lora-reg base alias {base_name or 'NAME'} {quote(name[:200])}`; for this push "
            "alone: `--accept-base`.",
        )


def is_local_path(name: str) -> bool:
    """Whether a base's name is a local path rather than a Hub id (`name` or `owner/name`)."""
    return (
        name.startswith(("/", "./", "../", "~", "file:")) or "\\" in name or name.count("/") > 1 or name in (".", "..")
    )


def _check_init(config: AdapterConfig, report: CheckReport) -> None:
    changed = lora.changes_base(config) if config.peft_type == "LORA" else None
    if changed is not None:
        report.add(
            "init-changes-base",
            f"{CONFIG} has {changed}: this initialization modified the base in training, so A and B do not fit the "
            "unmodified base.",
            file=CONFIG,
            where=changed.partition(" ")[0],
            found=changed,
            expected="an initialization that does not modify the base",
            hint="Convert it to plain LoRA: save_pretrained with path_initial_model_for_weight_conversion.",
        )
    if config.layer_replication:
        report.add(
            "layer-replication",
            f"{CONFIG} has layer_replication: the adapter was trained on a model with copied layers, not on this base.",
            file=CONFIG,
            where="layer_replication",
            found=str(config.raw.get("layer_replication"))[:80],
            expected="null",
            hint="Register the model with the copied layers as a base and train on that.",
        )
