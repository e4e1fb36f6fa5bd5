"""Settings of an S3 store, separate from the code that needs boto3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach the store. Without credentials: boto3 finds them (environment, profile, instance role)."""

    endpoint_url: str | None = None
    """None: AWS."""
    region: str | None = None
    """None: boto3's default."""
    path_style: bool = False
    """`host/bucket/key` rather than `bucket.host/key`, as most stores other than AWS expect."""
    checksums: Literal["when_supported", "when_required"] = "when_supported"
    """boto's `request_checksum_calculation`. Older stores (Ceph 16 over TLS) reject boto's default checksums."""
    verify: str | bool = True
    """Path of a CA bundle to trust instead of the system's; False trusts any certificate."""
    connect_timeout: float = 5.0
    """In seconds."""
    read_timeout: float = 60.0
    """In seconds, without a byte."""
    attempts: int = 4
    """Attempts per request, with boto's standard backoff."""
    part_size: int = 8 * MIB
    """Part size of a multipart upload in bytes; a blob up to this size is sent in one PUT."""
    parallel_parts: int = 3
    """Concurrent parts of one upload; this many parts and two more are in memory."""
    single_copy_limit: int = 5 * 1024 * MIB
    """Largest object, in bytes, for one CopyObject or one PUT (S3: 5 GiB)."""
