"""The connection to an S3 store: the boto3 client, and its errors as RegistryErrors."""

from __future__ import annotations

from typing import Any

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from lora_contract.errors import RegistryError
from lora_registry.blobs.s3_settings import S3Settings


def make_client(settings: S3Settings) -> Any:
    """A boto3 S3 client, safe to share between threads. boto3 has no types, so it is Any from here on."""
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=settings.endpoint_url,
        region_name=settings.region,
        verify=settings.verify,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path" if settings.path_style else "auto"},
            request_checksum_calculation=settings.checksums,
            # Every reader here knows the sha256; a second checksum would only cost time.
            response_checksum_validation="when_required",
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            retries={"mode": "standard", "total_max_attempts": settings.attempts},
            max_pool_connections=64,
            tcp_keepalive=True,
        ),
    )
    client.meta.events.register("before-parse.s3", _notice_cut_answers)
    return client


def _notice_cut_answers(*, operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
    """Retry a response that lost its body, as boto does for an error inside a 200.

    botocore does not compare the length of what it parses with the announced one: a listing cut after its headers
    reads as an empty bucket. Streamed bodies are compared by their readers.
    """
    body = response_dict["body"]
    if operation_model.http["method"] == "HEAD" or not isinstance(body, bytes):
        return
    if len(body) < int(response_dict["headers"].get("content-length", 0)):
        response_dict["status_code"] = 500


class StoreAnswered(RegistryError):
    """The store answered with an error: its HTTP `status` and S3 `error` code (`404` and such for HEAD)."""

    def __init__(self, operation: str, status: int, error: str) -> None:
        detail = f"The S3 store answered {operation} with {error} ({status})."
        if status in (401, 403):
            hint = "Check the credentials and the rights that they have on the bucket and prefix."
            super().__init__("storage-unavailable", detail, hint=hint, status=status, error=error)
        else:
            super().__init__("storage-unavailable", detail, status=status, error=error)
        self.status = status
        self.error = error


def call(client: Any, operation: str, **parameters: Any) -> Any:
    """Send one request, by boto's method name. Returns boto's response.

    Raises StoreAnswered if the store refused, and plain RegistryError `storage-unavailable` if it could not be
    reached. boto's own text is dropped: it contains URLs, and for signature errors the key id and the signed request.
    """
    try:
        return getattr(client, operation)(**parameters)
    except ClientError as error:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        raise StoreAnswered(operation, status, str(error.response.get("Error", {}).get("Code", "unknown"))) from None
    except BotoCoreError as error:
        raise unreachable(operation, error) from None


def unreachable(operation: str, error: Exception) -> RegistryError:
    """An error of the connection; names only its kind, since its text contains URLs."""
    return RegistryError(
        "storage-unavailable", f"The S3 store could not be reached for {operation}: {type(error).__name__}."
    )
