"""Connection to an S3 store: the boto3 client, with its errors as RegistryErrors."""

from __future__ import annotations

from typing import Any

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from lora_contract.errors import RegistryError
from lora_registry.blobs.s3_settings import S3Settings


def make_client(settings: S3Settings) -> Any:
    """Create a boto3 S3 client, safe to share between threads. boto3 is untyped, hence Any."""
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=settings.endpoint_url,
        region_name=settings.region,
        verify=settings.verify,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path" if settings.path_style else "auto"},
            request_checksum_calculation=settings.checksums,
            # Readers check the sha256; a second checksum would only cost time.
            response_checksum_validation="when_required",
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            retries={"mode": "standard", "total_max_attempts": settings.attempts},
            max_pool_connections=64,
            tcp_keepalive=True,
        ),
    )
    client.meta.events.register("before-parse.s3", _retry_truncated)
    return client


def _retry_truncated(*, operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
    """Make boto retry a response with a truncated body, like an error inside a 200.

    botocore does not compare the length of a parsed body with Content-Length: a listing truncated after its headers
    reads as an empty bucket. Streamed bodies are checked by their readers.
    """
    body = response_dict["body"]
    if operation_model.http["method"] == "HEAD" or not isinstance(body, bytes):
        return
    if len(body) < int(response_dict["headers"].get("content-length", 0)):
        response_dict["status_code"] = 500


class StoreResponseError(RegistryError):
    """The store responded with an error: HTTP `status` and S3 `error` code (for HEAD the status as text)."""

    def __init__(self, operation: str, status: int, error: str) -> None:
        detail = f"The S3 store responded to {operation} with {error} ({status})."
        if status in (401, 403):
            hint = "Check the credentials and their permissions on the bucket and prefix."
            super().__init__("storage-unavailable", detail, hint=hint, status=status, error=error)
        else:
            super().__init__("storage-unavailable", detail, status=status, error=error)
        self.status = status
        self.error = error


def call(client: Any, operation: str, **parameters: Any) -> Any:
    """Send a request, by the name of boto's method. Return boto's response.

    Raises StoreResponseError if the store refused, and plain RegistryError `storage-unavailable` if it could not be
    reached. boto's text is dropped: it contains URLs, and for signature errors the key id and the signed request.
    """
    try:
        return getattr(client, operation)(**parameters)
    except ClientError as error:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        raise StoreResponseError(
            operation, status, str(error.response.get("Error", {}).get("Code", "unknown"))
        ) from None
    except BotoCoreError as error:
        raise unreachable(operation, error) from None


def unreachable(operation: str, error: Exception) -> RegistryError:
    """Return an error of the connection with only its class name, since its text contains URLs."""
    return RegistryError(
        "storage-unavailable", f"The S3 store could not be reached for {operation}: {type(error).__name__}."
    )
