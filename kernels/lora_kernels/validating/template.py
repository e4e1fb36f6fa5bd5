"""Rendering of an untrusted chat template: sandboxed, with limits on time, memory and output.

Runs in the main thread of child processes and of the command line: the limits apply to the whole process. For what a
template can do without a sandbox see CVE-2024-34359.
"""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

from lora_contract.errors import RegistryError

CONVERSATION: Final = [
    {"role": "user", "content": "What is a LoRA adapter?"},
    {"role": "assistant", "content": "Two small matrices beside a frozen one."},
    {"role": "user", "content": "Merge it."},
]
MAX_SOURCE: Final = 1024 * 1024
MAX_OUTPUT: Final = 1024 * 1024
SECONDS: Final = 5
MEMORY: Final = 512 * 1024 * 1024
SPECIAL: Final = ("bos_token", "eos_token", "pad_token", "unk_token")


def render_template(source: str, tokenizer: dict[str, Any]) -> str:
    """Render a template on a fixed conversation with a generation prompt. Raises RegistryError `rejected`."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if len(source) > MAX_SOURCE:
        raise RegistryError(
            "rejected", f"The chat template has {len(source)} characters; at most {MAX_SOURCE} are rendered."
        )

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    # The environment that transformers renders chat templates with (utils/chat_template_utils.py).
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda _format: "2024-01-01"
    tokens = {name: _token(tokenizer.get(name)) for name in SPECIAL}
    try:
        with _limits():
            chunks, length = [], 0
            for chunk in environment.from_string(source).generate(
                messages=CONVERSATION, add_generation_prompt=True, **tokens
            ):
                length += len(chunk)
                if length > MAX_OUTPUT:
                    raise RegistryError(
                        "rejected", f"The chat template writes more than {MAX_OUTPUT} characters for three messages."
                    )
                chunks.append(chunk)
    except RegistryError:
        raise
    except MemoryError as error:
        raise RegistryError("rejected", f"The chat template needs more than {MEMORY} bytes.") from error
    except Exception as error:  # a template may raise any exception
        raise RegistryError(
            "rejected", f"The chat template cannot be rendered: {type(error).__name__}: {str(error)[:200]}."
        ) from error
    return "".join(chunks)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _token(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


@contextmanager
def _limits() -> Iterator[None]:
    def expired(_signal: int, _frame: object) -> NoReturn:
        raise RegistryError("rejected", f"The chat template did not end within {SECONDS} seconds.")

    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, expired)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY + _mapped(), before[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _mapped() -> int:
    """Current address space of the process in bytes; libraries map far more than they use."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
