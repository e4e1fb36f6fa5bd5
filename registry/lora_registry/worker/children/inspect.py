"""The reading half of `inspect`: digests, finite values, norms per module, the rendered chat template."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

from lora_contract.adapter.config import parse_config
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.findings import Finding
from lora_contract.tensors import read_header
from lora_kernels.validating.template import render_template
from lora_registry.blobs.hashing import checked
from lora_registry.processes.child import Report
from lora_registry.worker.children import sources
from lora_registry.worker.children.norms import tensor_norms

WEIGHTS = "adapter_model.safetensors"


def examine(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    """Read every stored file of a version once; returns `findings` and what was measured."""
    blobs = sources.blobs()
    files: sources.Files = spec["files"]
    findings: list[Finding] = []
    total, done = sum(sources.sizes(files).values()), 0
    for path, (digest, size) in sorted(files.items()):
        try:
            for piece in checked(blobs.stream(Digest.parse(digest)), digest=Digest.parse(digest), size=size):
                done += len(piece)
                report.progress(f"re-hash {path}", done=done, total=total, unit="bytes")
        except RegistryError as error:
            findings.append(
                Finding(
                    code="stored-bytes-differ",
                    severity="error",
                    message=f"{path}: the stored bytes are damaged: {error.detail}",
                    file=path,
                )
            )
    result: dict[str, Any] = {"bytes": total, "files": len(files)}
    read = sources.reader(blobs, files)
    if not findings and spec["kind"] == "adapter":
        result["modules"] = _modules(read, int(files[WEIGHTS][1]), findings, report)
        result["peft_type"] = parse_config(
            read("adapter_config.json", 0, int(files["adapter_config.json"][1]))
        ).peft_type
    if not findings and spec["kind"] == "base":
        result["rendered_template"] = _template(read, files, findings)
    result["findings"] = msgspec.to_builtins(findings)
    return result


def _modules(
    read: Callable[[str, int, int], bytes], size: int, findings: list[Finding], report: Report
) -> list[dict[str, Any]]:
    """Frobenius norm, largest absolute value and count of non-finite elements of each tensor."""
    header = read_header(read, WEIGHTS, size)
    rows = []
    for number, entry in enumerate(header.tensors):
        measured = tensor_norms(lambda offset, length: read(WEIGHTS, offset, length), entry)
        if measured.nonfinite:
            findings.append(
                Finding(
                    code="non-finite",
                    severity="error",
                    message=f"{entry.name} holds {measured.nonfinite} values that are NaN or infinite; expected none.",
                    file=WEIGHTS,
                    where=entry.name,
                )
            )
        rows.append(
            {
                "tensor": entry.name,
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "norm": measured.norm,
                "max": measured.largest,
            }
        )
        report.progress("measure tensors", done=number + 1, total=len(header.tensors), unit="tensors")
    return rows


def _template(read: Callable[[str, int, int], bytes], files: sources.Files, findings: list[Finding]) -> str | None:
    """The digest of the chat template on a fixed conversation; None where the base has no template."""
    source = None
    if "chat_template.jinja" in files:
        source = read("chat_template.jinja", 0, int(files["chat_template.jinja"][1])).decode("utf-8", "replace")
    config: dict[str, Any] = {}
    if "tokenizer_config.json" in files:
        config = json.loads(read("tokenizer_config.json", 0, int(files["tokenizer_config.json"][1])))
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
