"""Import the libraries that models run with, sooner than they import each other."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from lora_contract.startup import importing


def import_libraries() -> None:
    """Import torch, transformers, PEFT and, if it is installed, bitsandbytes.

    bitsandbytes wraps the functions of its CPU backend in `torch.compile` when it is imported, and calls the plain ones
    if compiling fails: the same bits. The compiler takes a second to import and 20 to compile them, more than a small
    model's validation, so they stay plain.
    """
    if "peft" in sys.modules:
        return
    with importing():
        import torch

        compiler = torch.compile
        torch.compile = _plain  # type: ignore[assignment]
        try:
            importlib.import_module("bitsandbytes")
        except ImportError:
            pass
        finally:
            torch.compile = compiler
        for name in ("transformers.modeling_utils", "transformers.models.auto.modeling_auto", "peft"):
            importlib.import_module(name)


def _plain(function: Callable[..., Any], **_options: Any) -> Callable[..., Any]:
    return function
