"""Stock Hub clients in processes of their own: each version of huggingface_hub reads its settings when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.support.envs import ensure_env

HERE: Final = Path(__file__).parent
VERSIONS: Final = ("2.4", "1.33.0", "0.36.2")
"""The one of our own environment, and two of their own, with hf-xet, as users have it."""


def python_with(version: str) -> str:
    if version == VERSIONS[0]:
        return sys.executable
    return str(ensure_env(f"hub-{version}", [f"huggingface_hub=={version}", "hf-xet"]) / "python")


def run(
    python: str,
    script: str,
    arguments: dict[str, Any],
    *,
    endpoint: str,
    home: Path,
    token: str = "",
    token_file: Path | None = None,
) -> Any:
    """The JSON that `tests/registry/hub/<script>` prints. Raises AssertionError with what it said where it fails."""
    passed = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "LORA_REG_", "PYTHON"))}
    environment = {
        **passed,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
        **({"HF_TOKEN": token} if token else {}),
        **({"HF_TOKEN_PATH": str(token_file)} if token_file else {}),
    }
    done = subprocess.run(
        [python, str(HERE / script), json.dumps(arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{script} ended with {done.returncode}:\n{done.stdout[-1000:]}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout.strip().splitlines()[-1])
