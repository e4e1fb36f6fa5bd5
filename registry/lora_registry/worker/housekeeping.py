"""Housekeeping beside jobs: remove expired uploads and the leftovers of killed processes.

Idempotent, so every worker does it.
"""

from __future__ import annotations

import logging
import threading
from typing import Final, NoReturn

from lora_contract.errors import RegistryError
from lora_registry.context import Context
from lora_registry.push import sessions
from lora_registry.worker import scratch

INTERVAL_SECONDS: Final = 600.0

log = logging.getLogger(__name__)


def start(ctx: Context) -> None:
    """Start housekeeping in a daemon thread."""
    threading.Thread(target=_run, args=(ctx,), name="housekeeping", daemon=True).start()


def _run(ctx: Context) -> NoReturn:
    pause = threading.Event()
    while True:
        try:
            removed = sessions.sweep(ctx)
            # One hour after the session expires: a client that is still sending has lost the session anyway.
            ctx.blobs.sweep(older_than=ctx.settings.upload_seconds + 3600)
            scratch.sweep(ctx.settings.data)
        except RegistryError as error:
            log.warning("Expired uploads could not be removed: %s", error.detail)
        except OSError as error:
            log.warning("Scratch folders could not be removed: %s", error.strerror)
        else:
            if removed:
                log.info("%s expired uploads were removed.", removed)
        pause.wait(INTERVAL_SECONDS)
