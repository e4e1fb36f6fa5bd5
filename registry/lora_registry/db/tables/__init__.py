"""SQLModel tables, without behaviour. Importing this package fills `SQLModel.metadata`, which Alembic compares.

Times are microseconds since the epoch in UTC: equal values and order on both databases.
"""

from lora_registry.db.tables.access import AuditEvent, IdempotencyRecord, Namespace, Token, TokenGrant, TokenSecret
from lora_registry.db.tables.bases import BaseAlias, BaseFingerprintRow, WeightSource
from lora_registry.db.tables.blobs import Blob, Orphan, UploadFile, UploadSessionRow
from lora_registry.db.tables.gates import Approval, DecisionRow, PolicyRow, VersionSignature
from lora_registry.db.tables.identity import TakenToken, TokenOrigin, TrustedIssuer, TrustRuleRow
from lora_registry.db.tables.jobs import TaskLease, WorkerLease
from lora_registry.db.tables.records import RecordDue, RecordExport
from lora_registry.db.tables.repositories import Repository, Retention, Tag, TagMove, Version, VersionBlob, VersionEdge
from lora_registry.db.tables.staging import StagedFile, Staging
from lora_registry.db.tables.work import JobRow, RecipeRow, ReportRow

__all__ = [
    "Approval",
    "AuditEvent",
    "BaseAlias",
    "BaseFingerprintRow",
    "Blob",
    "DecisionRow",
    "IdempotencyRecord",
    "JobRow",
    "Namespace",
    "Orphan",
    "PolicyRow",
    "RecipeRow",
    "RecordDue",
    "RecordExport",
    "ReportRow",
    "Repository",
    "Retention",
    "StagedFile",
    "Staging",
    "Tag",
    "TagMove",
    "TakenToken",
    "TaskLease",
    "Token",
    "TokenGrant",
    "TokenOrigin",
    "TokenSecret",
    "TrustRuleRow",
    "TrustedIssuer",
    "UploadFile",
    "UploadSessionRow",
    "Version",
    "VersionBlob",
    "VersionEdge",
    "VersionSignature",
    "WeightSource",
    "WorkerLease",
]
