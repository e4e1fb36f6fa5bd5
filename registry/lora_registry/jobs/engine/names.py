"""Names and the encoding of errors, shared by the client side and the worker side."""

from __future__ import annotations

from typing import Any, Final

from dbos import PortableWorkflowError

from lora_contract.errors import RegistryError, known_code

APPLICATION: Final = "lora-reg"

# Pinned: by default it is a hash of the workflows' source, and any edit would strand running jobs.
# Increment it only if a running job could not continue under the new code.
APPLICATION_VERSION: Final = "1"

PROGRESS_STREAM: Final = "progress"
ALIVE_EVENT: Final = "alive"


def to_portable(error: RegistryError) -> PortableWorkflowError:
    """Encode an error for a checkpoint: JSON with code, detail, hint and facts."""
    data: dict[str, Any] = {"hint": error.hint, "facts": error.facts}
    return PortableWorkflowError(error.detail, type(error).__name__, error.code, data)


def from_portable(error: PortableWorkflowError) -> RegistryError:
    """Decode an error. Anything but a RegistryError is a bug of ours and becomes `job-failed`."""
    # `error.name` does not help: after decoding it is always the portable class.
    code = known_code(error.code)
    if code is None or not isinstance(error.data, dict) or error.data.keys() != {"hint", "facts"}:
        return RegistryError("job-failed", f"{error.name}: {error.message}")
    data: dict[str, Any] = error.data
    return RegistryError(code, error.message, hint=data["hint"], **data["facts"])
