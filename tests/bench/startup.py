"""How long `lora-reg --version` takes to start, against `python -c "import click"`, in one run. The bar is under 2.

python tests/bench/startup.py [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import click": ["-c", "import click"],
    "lora-reg --version": ["-c", "from lora_reg.cli.main import main; main()", "--version"],
    "lora-reg --help": ["-c", "from lora_reg.cli.main import main; main()", "--help"],
}


def seconds(arguments: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "client")}
    took: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds + 2):
        for name, arguments in COMMANDS.items():
            took[name].append(seconds(arguments, environment))
    base = statistics.median(took["import click"][2:])
    for name, values in took.items():
        median = statistics.median(values[2:])
        sys.stdout.write(f"{name:20} median {median * 1000:6.1f} ms   ratio {median / base:.2f}\n")


if __name__ == "__main__":
    main()
