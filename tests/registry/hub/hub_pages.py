"""The pages of a list, as huggingface_hub follows them, from a host name that leads to this machine. Prints JSON."""

import json
import os
import socket
import sys

from huggingface_hub.utils import build_hf_headers
from huggingface_hub.utils._pagination import paginate

arguments = json.loads(sys.argv[1])
resolve = socket.getaddrinfo
socket.getaddrinfo = lambda host, *more, **named: resolve(
    "127.0.0.1" if host == "registry.example" else host, *more, **named
)
found, error = [], None
try:
    query = {"limit": 1, "author": "shared"}
    for item in paginate(os.environ["HF_ENDPOINT"] + "/api/models", query, build_hf_headers()):
        found.append(item["id"])  # noqa: PERF401  (what came before an error counts)
except Exception as raised:  # noqa: BLE001  (of requests or httpx, by version)
    error = type(raised).__name__
print(json.dumps({"found": found, "error": error}))
