"""Rendering of an untrusted chat template, in a process of its own that is killed after its time.

For what a template can do without a sandbox see CVE-2024-34359; for what it can do in one, `rendering`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from lora_contract.errors import RegistryError

CONVERSATION: Final = [
    {"role": "user", "content": "What is a LoRA adapter?"},
    {"role": "assistant", "content": "Two small matrices beside a frozen one."},
    {"role": "user", "content": "Merge it."},
]
MAX_SOURCE: Final = 1024 * 1024
MAX_OUTPUT: Final = 1024 * 1024
SECONDS: Final = 5
"""Processor time."""
WALL_SECONDS: Final = 30
"""With the start of the process, on a busy machine."""
MEMORY: Final = 512 * 1024 * 1024
SPECIAL: Final = ("bos_token", "eos_token", "pad_token", "unk_token")
_RENDERER: Final = Path(__file__).with_name("rendering.py")
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


def render_template(source: str, tokenizer: dict[str, Any]) -> str:
    """Render a template on a fixed conversation with a generation prompt. Raises RegistryError `rejected`."""
    if len(source) > MAX_SOURCE:
        raise RegistryError(
            "rejected", f"The chat template has {len(source)} characters; at most {MAX_SOURCE} are rendered."
        )
    request = {
        "source": source,
        "tokens": {name: _token(tokenizer.get(name)) for name in SPECIAL},
        "messages": CONVERSATION,
        "seconds": SECONDS,
        "memory": MEMORY,
        "output": MAX_OUTPUT,
    }
    try:
        ended = subprocess.run(
            [sys.executable, "-P", str(_RENDERER)],
            input=json.dumps(request).encode(),
            check=False,  # its exit status tells why
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WALL_SECONDS,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
    except subprocess.TimeoutExpired as error:
        raise RegistryError("rejected", f"The chat template did not end within {WALL_SECONDS} seconds.") from error
    if ended.returncode < 0:
        raise RegistryError("rejected", f"The chat template used more than {SECONDS} seconds of processor time.")
    try:
        answer = json.loads(ended.stdout)
    except ValueError as error:
        raise RegistryError("rejected", "The chat template ended the process that rendered it.") from error
    if "refused" in answer:
        raise RegistryError("rejected", f"The chat template {answer['refused']}.")
    text: str = answer["text"]
    return text


def _token(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
