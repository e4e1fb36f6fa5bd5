"""Adapters in a bucket: folders, below a prefix, that hold one. boto3 finds endpoint, region and credentials."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import httpx2

from lora_contract.errors import RegistryError
from lora_reg.importing.grouping import group, name_of
from lora_reg.importing.items import Item, SourceFile, Unreadable, listing_digest

_MAX_KEYS: Final = 200_000
_CHUNK: Final = 1 << 20


class BucketSource:
    """A bucket and a prefix. endpoint: None for what AWS_ENDPOINT_URL and the AWS configuration say."""

    def __init__(self, bucket: str, prefix: str, endpoint: str | None) -> None:
        self.bucket, self.prefix = bucket, prefix.strip("/")
        self._client = _client(endpoint)

    def items(self) -> Iterator[Item | Unreadable]:
        root = f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")
        for path, files in group(self.files()):
            where = f"{root}/{path}" if path else root
            yield Item(
                where, listing_digest(files), name_of(path, self.prefix.rpartition("/")[2] or self.bucket), files
            )

    def files(self) -> Iterator[SourceFile]:
        """All objects below the prefix."""
        below = f"{self.prefix}/" if self.prefix else ""
        count = 0
        with _explained(f"s3://{self.bucket}/{below}"):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below):
                for entry in page.get("Contents", ()):
                    count += 1
                    if count > _MAX_KEYS:
                        raise RegistryError(
                            "usage",
                            f"s3://{self.bucket}/{below} has more than {_MAX_KEYS} objects.",
                            hint="Name a prefix.",
                        )
                    key, path = entry["Key"], entry["Key"][len(below) :]
                    if path and not path.endswith("/"):
                        yield SourceFile(path, entry["Size"], mark=entry.get("ETag", ""), location=key)

    @contextmanager
    def open(self, item: Item, file: SourceFile, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        with _explained(f"{file.path} of {item.source}"):
            # The object that was listed: another one under this key would be half of each after a break.
            condition = {"IfMatch": file.mark} if file.mark else {}
            if start:
                condition["Range"] = f"bytes={start}-"
            answer = self._client.get_object(Bucket=self.bucket, Key=file.location, **condition)
            with closing(answer["Body"]) as body:
                yield start, body.iter_chunks(_CHUNK)

    def close(self) -> None:
        self._client.close()


def _client(endpoint: str | None) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise RegistryError(
            "usage",
            "Importing from S3 needs boto3, which is not installed.",
            hint="Install it with `pip install 'lora-reg[s3]'`.",
        ) from error
    settings = Config(retries={"total_max_attempts": 5, "mode": "standard"}, s3={"addressing_style": "auto"})
    with _explained("S3"):
        return boto3.client("s3", endpoint_url=endpoint, config=settings)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of boto3 as ours: a broken connection as one of httpx2, which is resumed."""
    from botocore import exceptions

    try:
        yield
    except (
        exceptions.ConnectionClosedError,
        exceptions.IncompleteReadError,
        exceptions.ReadTimeoutError,
        exceptions.ResponseStreamingError,
    ) as error:
        raise httpx2.ReadError(type(error).__name__) from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.NoRegionError) as error:
        raise RegistryError(
            "unauthenticated", f"S3: {error}.", hint="Set AWS_ACCESS_KEY_ID and the others as for the AWS command line."
        ) from error
    except exceptions.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = {403: "forbidden", 404: "not-found", 412: "conflict"}.get(status, "unavailable")
        raise RegistryError(
            code,  # type: ignore[arg-type]
            f"S3 answered {status} ({error.response.get('Error', {}).get('Code')}) on {what}.",
            hint="Check the bucket, the prefix, and the rights of the credentials.",
        ) from error
    except exceptions.BotoCoreError as error:
        raise RegistryError(
            "unavailable", f"S3: {type(error).__name__} on {what}.", hint="Check AWS_ENDPOINT_URL."
        ) from error
