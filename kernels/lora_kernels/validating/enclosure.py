"""Isolated environment for lm-eval: offline, an empty cache, silent, no bytecode written, in the folder of the tasks.

Everything is restored afterwards.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from lora_contract.errors import RegistryError
from lora_kernels.validating import models

_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    # Resampling in child processes would copy this one, including the model.
    "DISABLE_MULTIPROC": "1",
}

# The libraries read their environment once, on import; later changes must go to these constants.
_CONSTANTS: Final = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
    ("evaluate.config", "HF_EVALUATE_OFFLINE"),
)

_NOISY_LOGGERS: Final = ("lm_eval", "datasets", "evaluate")


class _LastError(logging.Handler):
    """Keeps the last error logged: lm-eval logs the cause and raises its consequence."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


_last_error = _LastError()


def last_error() -> str:
    """The last error logged, in brackets after a space; empty if there was none."""
    message = " ".join(_last_error.last.split())[:300]
    return f" ({message})" if message else ""


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Import lm-eval and give it an empty cache while its tasks are used. Raises RegistryError `usage` if it is not
    installed."""
    try:
        # lm-eval sets environment variables on import.
        with models.quiet(), _environment({}):
            for name in ("lm_eval.evaluator", "lm_eval.tasks", "lm_eval.models.huggingface", "datasets", "evaluate"):
                importlib.import_module(name)
    except ImportError as error:
        raise RegistryError(
            "usage",
            f"Tasks need lm-evaluation-harness; {error.name or 'a part of it'} is not installed.",
            hint="Install lora-reg with the extra `harness`.",
        ) from error
    config: Any = importlib.import_module("datasets.config")
    with tempfile.TemporaryDirectory(prefix="lora-reg-tasks-") as cache, _set(config, "HF_DATASETS_CACHE", cache):
        yield


@contextlib.contextmanager
def enclosed(folder: Path) -> Iterator[None]:
    """Isolate tasks, in their folder. What they print goes to stderr."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_ENVIRONMENT))
        for module, name in _CONSTANTS:
            stack.enter_context(_set(importlib.import_module(module), name, value=True))
        stack.enter_context(_set(sys, "dont_write_bytecode", value=True))
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(models.quiet())
        for name in _NOISY_LOGGERS:
            stack.enter_context(_silent(logging.getLogger(name)))
        _last_error.last = ""
        # Progress bars look up sys.stderr when they start.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


def seed(number: int) -> None:
    """Seed every random generator that a task may use."""
    import numpy as np
    import torch

    random.seed(number)
    np.random.seed(number)  # noqa: NPY002  # tasks draw from the global generator
    torch.manual_seed(number)


@contextlib.contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers
    logger.setLevel(logging.ERROR)
    logger.propagate, logger.handlers = False, [_last_error]
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


@contextlib.contextmanager
def _set(owner: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for key in os.environ.keys() - before.keys():
            del os.environ[key]
        os.environ.update(before)
