"""Settings of an S3 store, apart from the code that needs boto3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach the store. Credentials are not here: boto3 finds them (environment, profile, instance role)."""

    endpoint_url: str | None = None
    """None: AWS itself."""
    region: str | None = None
    """None: as boto3 finds it."""
    path_style: bool = False
    """`host/bucket/key` rather than `bucket.host/key`: which most stores other than AWS expect."""
    checksums: Literal["when_supported", "when_required"] = "when_supported"
    """boto's `request_checksum_calculation`. Older stores (Ceph 16 over TLS) refuse what boto adds by default."""
    verify: str | bool = True
    """Path of a CA bundle to trust instead of the system's; False trusts any certificate."""
    connect_timeout: float = 5.0
    """Seconds."""
    read_timeout: float = 60.0
    """Seconds without a byte."""
    attempts: int = 4
    """Attempts for each request, with boto's standard back-off."""
    part_size: int = 8 * MIB
    """Bytes of a part of a multipart upload, and the size up to which a blob is sent in one PUT."""
    parallel_parts: int = 3
    """Concurrent parts of one upload; memory holds this many parts and one more."""
    single_copy_limit: int = 5 * 1024 * MIB
    """Largest object that one CopyObject or one PUT may carry (S3: 5 GiB)."""
