"""A real Chromium, driven by Playwright from an environment of its own: a script of a test runs there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.envs import ensure_env

PLAYWRIGHT: Final = ["playwright==1.65.2"]


def run_in_browser(script: Path, **facts: Any) -> Any:
    """Run a script with Playwright, with `facts` and the path of Chromium as JSON; returns the JSON that it prints."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("There is no Chromium on this machine.")
    python = ensure_env("browser", PLAYWRIGHT) / "python"
    given = json.dumps({"chromium": chromium, **facts})
    done = subprocess.run([str(python), str(script), given], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
