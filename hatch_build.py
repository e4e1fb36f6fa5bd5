"""Compiles the C of the kernels when the package is built or installed, where there is a compiler.

Without one the package is complete all the same: numpy does what the C would have done, slower.
`python hatch_build.py` compiles it in place.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NATIVE = Path(__file__).parent / "kernels" / "lora_kernels" / "native"
LIBRARY = NATIVE / "lora_native.so"
FLAGS = ["-O3", "-std=gnu11", "-fno-fast-math", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# Rounding must give numpy's bytes, so that no a * b + c is one operation there; in a product every one is.
CONTRACTION = {"add_round": "off", "product": "fast", "rows": "off"}


def compile_native() -> Path | None:
    """The library beside its sources; None where it cannot be made."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory(dir=NATIVE) as folder:
        objects = [str(Path(folder) / f"{name}.o") for name in CONTRACTION]
        partial = Path(folder) / LIBRARY.name
        commands = [
            [*compiler, *FLAGS, f"-ffp-contract={contraction}", "-c", str(NATIVE / f"{name}.c"), "-o", made]
            for (name, contraction), made in zip(CONTRACTION.items(), objects, strict=True)
        ]
        try:
            for command in (*commands, [*compiler, "-shared", *objects, "-o", str(partial)]):
                subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            told = getattr(error, "stderr", None) or error
            print(f"lora-reg: merges will run in numpy alone, the C was not compiled: {told}", file=sys.stderr)
            return None
        partial.replace(LIBRARY)
    return LIBRARY


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand
    pass
else:

    class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg, misc]
        """Adds the library to the wheel, which is then one for this platform."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if self.target_name != "wheel":
                return
            library = compile_native()
            if library is None or version == "editable":
                return
            build_data["force_include"][str(library)] = f"lora_kernels/native/{library.name}"
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform()}"


def _platform() -> str:
    import sysconfig

    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    sys.exit(compile_native() is None)
