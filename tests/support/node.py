"""Node packages for servers that tests run beside lora-reg, in folders of their own under `.cache/test-envs/`."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

from tests.support.envs import ENVS, locked


def missing() -> str | None:
    """Why no Node program can run on this machine; None if one can."""
    absent = [program for program in ("node", "npm") if shutil.which(program) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


def ensure_packages(name: str, packages: list[str]) -> Path:
    """Install npm packages unless they are there; returns the folder that holds `node_modules`.

    The folder's name carries a hash of the packages. Scripts of packages do not run. Safe under pytest-xdist. Raises
    RuntimeError with npm's last lines where the installation fails, and leaves nothing half built.
    """
    folder = ENVS / f"{name}-{hashlib.sha256(json.dumps(sorted(packages)).encode()).hexdigest()[:12]}"
    done = folder / ".complete"
    with locked(ENVS / f"{folder.name}.lock"):
        if done.exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent", *packages]
        result = subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if result.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout[-2000:]}")
        done.touch()
    return folder
