"""The process that renders an untrusted chat template, sandboxed and with limits of its own. Run by its path.

In: one JSON document `{"source", "tokens", "messages", "seconds", "memory", "output"}` on stdin. Out: `{"text"}` or
`{"refused"}` on stdout. The kernel kills it when its processor time is used up: Jinja computes constants while it
compiles, and one power of integers runs for hours without a chance for Python to interrupt it.

Imports jinja2 and the standard library alone, so that it starts fast.
"""

from __future__ import annotations

import json
import resource
import sys
from contextlib import suppress
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Refused(Exception):
    pass


def main() -> None:
    request = json.load(sys.stdin)
    _limit(request["seconds"], request["memory"])
    try:
        answer = {"text": _render(request)}
    except Refused as error:
        answer = {"refused": str(error)}
    except MemoryError:
        answer = {"refused": f"needs more than {request['memory']} bytes"}
    except Exception as error:  # a template may raise any exception
        answer = {"refused": f"cannot be rendered: {type(error).__name__}: {str(error)[:200]}"}
    json.dump(answer, sys.stdout)


def _render(request: dict[str, Any]) -> str:
    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    # The environment that transformers renders chat templates with (utils/chat_template_utils.py).
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda _format: "2024-01-01"
    chunks, length = [], 0
    template = environment.from_string(request["source"])
    for chunk in template.generate(messages=request["messages"], add_generation_prompt=True, **request["tokens"]):
        length += len(chunk)
        if length > request["output"]:
            raise Refused(f"writes more than {request['output']} characters for three messages")
        chunks.append(chunk)
    return "".join(chunks)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _limit(seconds: int, memory: int) -> None:
    # Libraries map more than they use, so what is mapped already does not count. A confined process may not ask.
    mapped = 256 * 1024 * 1024
    with suppress(PermissionError), open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds += round(used.ru_utime + used.ru_stime)
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory + mapped),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


if __name__ == "__main__":
    main()
