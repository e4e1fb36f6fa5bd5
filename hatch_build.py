"""Compiles the C of the kernels when the package is built or installed, where there is a compiler.

Without one the package is complete all the same: numpy does what the C would have done, with the same bytes, slower.
`python hatch_build.py` compiles it in place.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "kernels" / "lora_kernels" / "native" / "add_round.c"
# No contraction of a * b + c, no reordering: the bytes must be numpy's.
FLAGS = ["-O3", "-std=c11", "-ffp-contract=off", "-fno-fast-math", "-fPIC", "-shared", "-Wall", "-Wextra"]


def compile_native() -> Path | None:
    """The library beside its source; None where it cannot be made."""
    target = SOURCE.with_suffix(".so")
    partial = target.with_suffix(f".{os.getpid()}.so")
    command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, str(SOURCE), "-o", str(partial)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", None) or error
        print(f"lora-reg: merges will run in numpy alone, the C was not compiled: {told}", file=sys.stderr)
        return None
    partial.replace(target)
    return target


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
            build_data["force_include"][str(library)] = "lora_kernels/native/add_round.so"
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform()}"


def _platform() -> str:
    import sysconfig

    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    sys.exit(compile_native() is None)
