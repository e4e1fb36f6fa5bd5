"""python our_compose.py OUT METHOD PARAMETERS ADAPTER...: compose adapter folders with weights of one.

Prints the seconds of the call as JSON.
"""

from __future__ import annotations

import json
import sys
import time

from lora_kernels.composing import compose_folders


def main(out: str, method: str, parameters: str, *adapters: str) -> None:
    began = time.perf_counter()
    compose_folders([(folder, 1.0) for folder in adapters], out, method=method, parameters=json.loads(parameters))
    print(json.dumps({"combine": time.perf_counter() - began}))


if __name__ == "__main__":
    main(*sys.argv[1:])
