"""The child of `inspect`: check digests, finite values, norms per module, and the rendered chat template."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from lora_contract.adapter.config import parse_config
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.findings import Finding
from lora_contract.tensors import read_header
from lora_kernels.validating.template import render_template
from lora_registry.blobs.damage import damaged
from lora_registry.blobs.hashing import checked
from lora_registry.processes.child import ChildReporter
from lora_registry.worker.children import files
from lora_registry.worker.children.norms import tensor_norms

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


class InspectInput(msgspec.Struct, frozen=True):
    kind: str
    files: files.Files


class MeasuredTensor(msgspec.Struct, frozen=True):
    """norm, max: Frobenius norm and largest absolute value of the finite elements."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    norm: float
    max: float


class Inspection(msgspec.Struct, frozen=True):
    """The body of the report; fields that were not measured are omitted.

    bytes, files: totals. modules, peft_type: of an adapter. rendered_template: of a base, the digest of its chat
    template rendered on a fixed conversation; None if it has no template. damaged: the blobs found so, as errors of
    `blobs.damage` name them.
    """

    bytes: int
    files: int
    findings: tuple[Finding, ...]
    modules: tuple[MeasuredTensor, ...] | UnsetType = UNSET
    peft_type: str | UnsetType = UNSET
    rendered_template: str | UnsetType | None = UNSET
    damaged: tuple[dict[str, str], ...] | UnsetType = UNSET


def examine(data: InspectInput, reporter: ChildReporter) -> Inspection:
    """Read and measure every stored file of a version."""
    blobs = files.blobs()
    findings: list[Finding] = []
    found: list[dict[str, str]] = []
    total, done = sum(files.sizes(data.files).values()), 0
    for path, stored in sorted(data.files.items()):
        where = stored.where
        try:
            for chunk in checked(blobs.stream(where), digest=where, size=stored.size):
                done += len(chunk)
                reporter.progress(f"re-hash {path}", done=done, total=total, unit="bytes")
        except RegistryError as error:
            refusal = damaged(where, path, error)
            if refusal.code != "corrupt":
                raise
            findings.append(
                Finding(
                    code="stored-bytes-differ",
                    severity="error",
                    message=f"{path}: the stored bytes are damaged: {error.detail}",
                    file=path,
                )
            )
            found.append(refusal.facts["blob"])
    read = files.reader(blobs, data.files)
    modules: tuple[MeasuredTensor, ...] | UnsetType = UNSET
    peft_type: str | UnsetType = UNSET
    template: str | UnsetType | None = UNSET
    if not findings and data.kind == "adapter":
        modules = _modules(read, data.files[WEIGHTS].size, findings, reporter)
        peft_type = parse_config(read(CONFIG, 0, data.files[CONFIG].size)).peft_type
    elif not findings and data.kind == "base":
        template = _template(read, data.files, findings)
    return Inspection(total, len(data.files), tuple(findings), modules, peft_type, template, tuple(found) or UNSET)


def _modules(
    read: Callable[[str, int, int], bytes], size: int, findings: list[Finding], reporter: ChildReporter
) -> tuple[MeasuredTensor, ...]:
    """Measure each tensor of an adapter; add a finding for each with non-finite values."""
    header = read_header(read, WEIGHTS, size)
    rows = []
    for number, entry in enumerate(header.tensors):
        measured = tensor_norms(lambda offset, length: read(WEIGHTS, offset, length), entry)
        if measured.nonfinite:
            findings.append(
                Finding(
                    code="non-finite",
                    severity="error",
                    message=f"{entry.name} has {measured.nonfinite} NaN or infinite values; expected none.",
                    file=WEIGHTS,
                    where=entry.name,
                )
            )
        rows.append(MeasuredTensor(entry.name, entry.dtype, entry.shape, measured.norm, measured.largest))
        reporter.progress("measure tensors", done=number + 1, total=len(header.tensors), unit="tensors")
    return tuple(rows)


def _template(read: Callable[[str, int, int], bytes], stored: files.Files, findings: list[Finding]) -> str | None:
    """Return the digest of the chat template rendered on a fixed conversation; None if the base has no template."""
    source = None
    if "chat_template.jinja" in stored:
        source = read("chat_template.jinja", 0, stored["chat_template.jinja"].size).decode("utf-8", "replace")
    config: dict[str, Any] = {}
    if "tokenizer_config.json" in stored:
        config = json.loads(read("tokenizer_config.json", 0, stored["tokenizer_config.json"].size))
        if source is None and isinstance(config.get("chat_template"), str):
            source = config["chat_template"]
    if source is None:
        return None
    try:
        return str(Digest.of(render_template(source, config).encode()))
    except RegistryError as error:
        findings.append(
            Finding(
                code="chat-template",
                severity="warning",
                message=error.detail,
                file="chat_template.jinja",
                hint=error.hint,
            )
        )
        return None
