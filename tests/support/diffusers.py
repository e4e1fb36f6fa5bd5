"""diffusers itself, and tiny pipelines of random weights made with it.

Nothing of ours needs it, so it is in none of our extras: the tests take it from an environment of its own, which holds
nothing else; torch, transformers and PEFT are those of the tests.
"""

from __future__ import annotations

import sys
from typing import Any

from tests.support.envs import ensure_env

REQUIREMENTS = ["--no-deps", "diffusers==0.42.1", "importlib_metadata==10.2.0", "zipp==4.1.2"]


def load() -> Any:
    """Import diffusers. Raises RuntimeError where it cannot be installed."""
    if "diffusers" not in sys.modules:
        found = ensure_env("diffusers-0.42.1", REQUIREMENTS).parent
        # Behind everything else: what the tests' own environment has comes first.
        sys.path.append(str(next((found / "lib").glob("python3.*/site-packages"))))
    import diffusers

    return diffusers
