"""What lm-evaluation-harness runs in: no hub, no cache of an earlier run, nothing said, nothing written beside the
tasks, and the folder of the tasks as the place from which paths are read. All of it is as before afterwards."""

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
    # Resampling in processes of its own would copy this one, model and all.
    "DISABLE_MULTIPROC": "1",
}

# The libraries read their environment when they are imported, and these ever after.
_CONSTANTS: Final = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
    ("evaluate.config", "HF_EVALUATE_OFFLINE"),
)

_TALKERS: Final = ("lm_eval", "datasets", "evaluate")


class _Heard(logging.Handler):
    """The last error that was logged: the harness logs the cause, and raises what follows from it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


_heard = _Heard()


def last_error() -> str:
    """What was logged last as an error, in brackets and behind a space; empty where nothing was."""
    said = " ".join(_heard.last.split())[:300]
    return f" ({said})" if said else ""


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Import the harness, and give it an empty cache for as long as its tasks are used. Raises RegistryError `usage`
    where it is not installed."""
    try:
        # Of an import the harness sets variables of its own.
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
    """Work in the folder of some tasks. What they print goes to stderr, as all talk does."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_ENVIRONMENT))
        for module, name in _CONSTANTS:
            stack.enter_context(_set(importlib.import_module(module), name, value=True))
        stack.enter_context(_set(sys, "dont_write_bytecode", value=True))
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(models.quiet())
        for name in _TALKERS:
            stack.enter_context(_silent(logging.getLogger(name)))
        _heard.last = ""
        # Bars find stderr by its name when they begin.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


def seed(number: int) -> None:
    """All generators that a task may draw from."""
    import numpy as np
    import torch

    random.seed(number)
    np.random.seed(number)  # noqa: NPY002  # it is the one that others' code draws from
    torch.manual_seed(number)


@contextlib.contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    level, spread, handlers = logger.level, logger.propagate, logger.handlers
    logger.setLevel(logging.ERROR)
    logger.propagate, logger.handlers = False, [_heard]
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate, logger.handlers = spread, handlers


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
