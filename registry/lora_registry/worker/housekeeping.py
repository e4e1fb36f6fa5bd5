"""Housekeeping beside jobs: remove expired uploads, and what killed processes left on the disk.

Idempotent, so every worker may do it.
"""

from __future__ import annotations

import logging
import threading
from typing import Final, NoReturn

from lora_contract.errors import RegistryError
from lora_registry.context import Context
from lora_registry.push import sessions
from lora_registry.worker import scratch

EVERY_SECONDS: Final = 600.0

log = logging.getLogger(__name__)


def start(ctx: Context) -> None:
    """Begin, in a thread that ends with the process."""
    threading.Thread(target=_keep, args=(ctx,), name="housekeeping", daemon=True).start()


def _keep(ctx: Context) -> NoReturn:
    pause = threading.Event()
    while True:
        try:
            removed = sessions.sweep(ctx)
            # An hour past the session's end: a client that is still sending then has lost the session anyway.
            ctx.blobs.sweep(older_than=ctx.settings.upload_seconds + 3600)
            scratch.sweep(ctx.settings.data)
        except RegistryError as error:
            log.warning("Expired uploads could not be removed: %s", error.detail)
        except OSError as error:
            log.warning("Working folders could not be removed: %s", error.strerror)
        else:
            if removed:
                log.info("%s expired uploads were removed.", removed)
        pause.wait(EVERY_SECONDS)
