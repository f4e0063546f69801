"""The OpenAPI 3.1 document and a page to read it, both made from the operations."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import jinja2
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import orchestrator
from orchestrator.intake.door import Operation
from orchestrator.intake.problems import MEDIA_TYPE, ProblemDetails
from orchestrator.intake.views import RELEASE, REQUEST, SERVICE, TOKEN

PARTS = {"service": SERVICE, "release": RELEASE, "request": REQUEST, "token": TOKEN}
REF = "#/components/schemas/{model}"

REFUSALS = {
    401: "Nobody who is known",
    403: "Not allowed",
    429: "Too many requests",
    503: "Too many requests at once, or Redis does not answer",
}


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """The whole document."""
    found = list(operations)
    models: set[type[BaseModel]] = {ProblemDetails}
    for operation in found:
        models |= {m for m in (*operation.answers.values(), operation.body) if isinstance(m, type)}
    _, schemas = models_json_schema(
        [(m, "serialization") for m in sorted(models, key=lambda m: m.__name__)], ref_template=REF
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in found:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "release-orchestrator",
            "version": orchestrator.__version__,
            "description": "Releases behind nginx, judged on metrics.",
        },
        "paths": paths,
        "security": [{"token": []}],
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [*_path_parts(operation.path), *_query(operation.query), *_headers(operation)],
        "responses": _responses(operation),
    }
    if operation.body is not None:
        content = {"application/json": {"schema": {"$ref": REF.format(model=operation.body.__name__)}}}
        found["requestBody"] = {"required": not operation.optional, "content": content}
    return found


def _path_parts(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": PARTS[name]},
        }
        for name in re.findall(r"{(\w+)}", path)
    ]


def _query(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema()
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": field.pop("description", ""),
            "schema": _plain(field),
        }
        for name, field in schema.get("properties", {}).items()
    ]


def _plain(field: dict[str, Any]) -> dict[str, Any]:
    """A parameter that may be left out is not null where it is there."""
    kinds = [k for k in field.get("anyOf", []) if k != {"type": "null"}]
    return kinds[0] if len(kinds) == 1 else {k: v for k, v in field.items() if k != "title"}


def _headers(operation: Operation) -> list[dict[str, Any]]:
    found = []
    if operation.keyed:
        found.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "The same key with the same request again is the same release",
                "schema": {"type": "string", "maxLength": 200, "pattern": "^[!-~]*$"},
            }
        )
    if operation.endless:
        found.append(
            {
                "name": "Last-Event-ID",
                "in": "header",
                "required": False,
                "description": "The id of the last event that was seen",
                "schema": {"type": "string", "pattern": REQUEST},
            }
        )
    return found


def _responses(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for status, answer in operation.answers.items():
        found[str(status)] = {"description": HTTPStatus(status).phrase}
        if isinstance(answer, str) and answer:
            found[str(status)]["content"] = {answer: {"schema": {"type": "string"}}}
        elif answer:
            found[str(status)]["content"] = {
                "application/json": {"schema": {"$ref": REF.format(model=answer.__name__)}}
            }
    refusals = dict(REFUSALS)
    if "{" in operation.path:
        refusals[404] = "Not known"
    if operation.query.model_fields or operation.body is not None or _headers(operation):
        refusals[422] = "Understood, and not what is asked for: the detail names each wrong field"
    if operation.body is not None:
        refusals |= {
            400: "Not JSON",
            408: "The body came too slowly",
            413: "Too long",
            415: "Not application/json",
        }
    if operation.conflict:
        refusals[409] = operation.conflict
    content = {MEDIA_TYPE: {"schema": {"$ref": REF.format(model=ProblemDetails.__name__)}}}
    for status, why in sorted(refusals.items()):
        found[str(status)] = {"description": why, "content": content}
    return found


_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>API - release-orchestrator</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
h2 code { font-size: 1em; }
table { border-collapse: collapse; }
td, th { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0; }
</style>
<h1>{{ doc.info.title }} {{ doc.info.version }}</h1>
<p>{{ doc.info.description }} For machines: <a href="openapi.json">openapi.json</a>.
Every request carries <code>Authorization: Bearer rot_…</code>; errors are
<a href="https://www.rfc-editor.org/rfc/rfc9457">problem details</a>.</p>
{% for path, methods in doc.paths.items() %}
{% for method, op in methods.items() %}
<h2 id="{{ op.operationId }}"><code>{{ method | upper }} {{ path }}</code></h2>
<p>{{ op.summary }}.</p>
{% set query = op.parameters | rejectattr("in", "equalto", "path") | list %}
{% if query %}
<table><tr><th>parameter</th><th>in</th><th></th></tr>
{% for p in query %}
<tr><td><code>{{ p.name }}</code></td><td>{{ p.in }}</td><td>{{ p.description }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% if op.requestBody %}
{% set model = op.requestBody.content["application/json"].schema["$ref"].rpartition("/")[2] %}
<p>Body{{ "" if op.requestBody.required else ", optional" }}:</p>
<table><tr><th>field</th><th></th></tr>
{% for name, field in doc.components.schemas[model].properties.items() %}
<tr><td><code>{{ name }}</code></td><td>{{ field.description }}
{%- if name in doc.components.schemas[model].required or [] %} <strong>required</strong>{% endif %}</td></tr>
{% endfor %}
</table>
{% endif %}
<p>Answers: {% for status, answer in op.responses.items() %}<code>{{ status }}</code> {{ answer.description }}
{%- if not loop.last %}; {% endif %}{% endfor %}.</p>
{% endfor %}
{% endfor %}
"""


def page(doc: dict[str, Any]) -> str:
    """The document for people; it loads nothing."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_PAGE).render(doc=doc)
