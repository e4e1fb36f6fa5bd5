"""Import PEFT and bitsandbytes without their compiler."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def import_peft() -> None:
    """Import PEFT, and bitsandbytes if it is installed.

    bitsandbytes wraps the functions for its CPU backend in `torch.compile` when it is imported, and calls the plain
    ones if compiling fails: the same bits. Importing the compiler takes a second and compiling them 20, more than a
    small model's validation, so they stay plain here.
    """
    import torch

    compiler = torch.compile
    torch.compile = _plain  # type: ignore[assignment]
    try:
        importlib.import_module("bitsandbytes")
    except ImportError:
        pass
    finally:
        torch.compile = compiler
    importlib.import_module("peft")


def _plain(function: Callable[..., Any], **_options: Any) -> Callable[..., Any]:
    return function
