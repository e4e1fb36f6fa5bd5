"""Reports of validations."""

from __future__ import annotations

import json

from lora_contract import decoding
from lora_contract.findings import Finding
from lora_contract.wire.jobs import ReportList, ReportView
from lora_registry.auth.caller import Caller
from lora_registry.jobs import names, store
from lora_registry.repositories import resolve
from lora_registry.repositories.paths import VersionPath
from lora_registry.runtime.clock import iso


def list_all(caller: Caller, path: VersionPath) -> ReportList:
    """Return the reports on a version, newest first."""
    with caller.ctx.db.read() as session:
        _, version = resolve.version(session, caller.principal, path)
        hidden = names.hidden_parents(session, caller.principal, version.id)
        items = []
        for row in store.reports(session, version.id):
            body = json.loads(names.redact(row.body, hidden))
            layers = body.get("layers", {}).values()
            found = body.pop("findings", [finding for layer in layers for finding in layer["findings"]])
            findings = decoding.convert(found, list[Finding])
            items.append(
                ReportView(
                    id=row.id,
                    kind=row.kind,
                    version=version.digest,
                    created_at=iso(row.created_at),
                    passed=row.passed,
                    findings=findings,
                    body=body,
                )
            )
        return ReportList(items=items)
