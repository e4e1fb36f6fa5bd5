"""docs/reference/rest.md, from the OpenAPI document that the service serves at /schema."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Final, cast

from docs.generate.markdown import NOTE, anchor, block, code, document, table

_METHODS: Final = ("get", "head", "post", "put", "patch", "delete")


def page() -> str:
    return document(_lines(schema()))


def schema() -> dict[str, Any]:
    """The OpenAPI document. It depends on no setting, database or store, so none is opened."""
    from lora_registry.app import create_app
    from lora_registry.settings import ServiceSettings

    app = create_app(cast(Any, SimpleNamespace(settings=ServiceSettings(auth="token"))))
    return app.openapi_schema.to_schema()


def _lines(openapi: dict[str, Any]) -> Iterator[str]:
    routes = [
        (path, method, operation)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
        if method in _METHODS
    ]
    shared = set.intersection(*(set(_problems(operation)) for _, _, operation in routes))
    yield "# REST API"
    yield ""
    yield NOTE
    yield ""
    yield "The native API, as JSON under `/api/v1`. The service serves the same document as OpenAPI 3.1 at"
    yield "`/schema/openapi.json`. With `LORA_REG_AUTH=token`, requests carry `Authorization: Bearer TOKEN`. What a"
    yield "caller may not read is answered with 404, like what does not exist. Outside this document are `/healthz`"
    yield "(the process is up), `/readyz` (database and blob store answer) and the Hub dialect under"
    yield "[`/hf`](../decisions/0004-hub-dialect.md)."
    yield ""
    yield f"Every route may answer a [Problem](#problem) with one of the statuses {', '.join(sorted(shared))}."
    yield "[Errors](errors.md) lists the codes with their statuses."
    yield ""
    yield "In paths, `selector` is `latest`, a tag, `vN`, a digest (`sha256:…`), or a tag or `vN` with its digest"
    yield "(`prod@sha256:…`). Lists are paged: pass `next_cursor` of one page as `cursor` to get the next."
    for tag in dict.fromkeys(operation["tags"][0] for _, _, operation in routes):
        yield f"\n## {tag.capitalize()}"
        for path, method, operation in routes:
            if operation["tags"][0] == tag:
                yield from _route(path, method, operation, shared)
    yield "\n## Schemas"
    for name, described in sorted(openapi["components"]["schemas"].items()):
        yield from _schema(name, described)


def _problems(operation: dict[str, Any]) -> Iterator[str]:
    for status, answer in operation["responses"].items():
        if "application/problem+json" in answer.get("content", {}):
            yield status


def _route(path: str, method: str, operation: dict[str, Any], shared: set[str]) -> Iterator[str]:
    yield f"\n### {method.upper()} {path}\n"
    yield f"{operation['summary']}."
    if operation.get("description"):
        yield f"\n{operation['description']}"
    yield from table(
        ["parameter", "in", "type", "default", "meaning"],
        (
            [
                code(one["name"]),
                one["in"] + (", required" if one.get("required") and one["in"] != "path" else ""),
                _type(one["schema"]),
                _default(one["schema"]),
                one.get("description") or one["schema"].get("description", ""),
            ]
            for one in operation.get("parameters", [])
        ),
    )
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"\nBody: {_type(content['schema'])}" + ("" if kind == "application/json" else f", {code(kind)}")
    answers = []
    for status, answer in operation["responses"].items():
        if status in shared:
            continue
        contents = answer.get("content", {})
        answered = [
            _type(content.get("schema", {})) + ("" if kind == "application/json" else f" ({code(kind)})")
            for kind, content in contents.items()
        ]
        headers = ", ".join(code(name) for name in answer.get("headers", {}))
        answers.append(
            f"{status}{' ' if answered else ''}{', '.join(answered)}{f', headers {headers}' if headers else ''}"
        )
    yield f"\nAnswers: {'; '.join(answers)}"


def _schema(name: str, described: dict[str, Any]) -> Iterator[str]:
    yield f"\n### {name}"
    if described.get("description"):
        yield f"\n{described['description']}"
    if "properties" not in described:
        yield from block(_type(described).replace("`", ""))
        return
    required = described.get("required", [])
    yield from table(
        ["field", "type", "required", "default", "meaning"],
        (
            [
                code(field),
                _type(one),
                "yes" if field in required else "",
                _default(one),
                one.get("description", ""),
            ]
            for field, one in described["properties"].items()
        ),
    )


def _type(described: dict[str, Any]) -> str:
    """A JSON schema in a few words, with links to the schemas of this page."""
    if "$ref" in described:
        name = described["$ref"].rpartition("/")[2]
        return f"[{name}](#{anchor(name)})"
    if "enum" in described:
        return ", ".join(code(str(one)) for one in described["enum"])
    if "const" in described:
        return code(str(described["const"]))
    for union in ("oneOf", "anyOf", "allOf"):
        if union in described:
            return " or ".join(dict.fromkeys(_type(one) for one in described[union]))
    kind = described.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        return f"array of {_type(described.get('items', {}))}"
    if kind == "object" and isinstance(described.get("additionalProperties"), dict):
        return f"object of {_type(described['additionalProperties'])}"
    limits = [
        f"{word} {described[key]:g}"
        for key, word in (("minimum", "from"), ("maximum", "to"), ("maxLength", "at most"), ("maxItems", "at most"))
        if key in described
    ]
    return " ".join([kind, *limits])


def _default(described: dict[str, Any]) -> str:
    if "default" not in described or described["default"] is None:
        return ""
    value = described["default"]
    return code("true" if value is True else "false" if value is False else repr(value) if value == "" else str(value))
