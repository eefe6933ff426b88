"""The API's description, OpenAPI 3.1, from the table of routes and the models themselves."""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from agent.commands import Failure

if TYPE_CHECKING:  # routes hands its table over; it imports this module to answer with the document
    from agent.transports.http_api.route import Route

_REF = "#/components/schemas/{model}"
_FAILURE = TypeAdapter(Failure)


@functools.cache
def document(routes: tuple[Route, ...], version: str) -> str:
    """The whole description as JSON."""
    schemas, components = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return json.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "storage-agent",
                "version": version,
                "description": "Storage commands for one hypervisor host. Callers are known by peer credentials on the "
                "unix socket and by client certificate on TCP; each operation names the role it needs.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "paths": paths,
            "components": {"schemas": components, "responses": {"Failure": _failure_response(schemas)}},
        }
    )


_Schemas = dict[tuple[int, JsonSchemaMode], dict[str, Any]]


def _schemas(routes: tuple[Route, ...]) -> tuple[_Schemas, dict[str, Any]]:
    """References by adapter and direction, and the definitions that they point at."""
    wanted: dict[tuple[int, JsonSchemaMode], TypeAdapter[Any]] = {(id(_FAILURE), "serialization"): _FAILURE}
    for route in routes:
        if route.body is not None:
            wanted[id(route.body), "validation"] = route.body
        for answer in route.answers.values():
            if not isinstance(answer, str):
                wanted[id(answer), "serialization"] = answer
    by_key, shared = TypeAdapter.json_schemas(
        [(key, key[1], adapter) for key, adapter in wanted.items()],
        ref_template=_REF,
        schema_generator=GenerateJsonSchema,
    )
    references = {key: dict(by_key[key, key[1]]) for key in wanted}
    return references, shared.get("$defs", {})


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "description": f"Needs the role `{route.role}`.",
        "responses": {
            str(status): {
                "description": "Done." if status == 200 else "Accepted.",
                "content": _content(answer, schemas),
            }
            for status, answer in route.answers.items()
        }
        | {"default": {"$ref": "#/components/responses/Failure"}},
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ] + [
        {"name": parameter.name, "in": "query", "schema": parameter.schema, "description": parameter.description}
        for parameter in route.parameters
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        schema = schemas[id(route.body), "validation"]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _content(answer: TypeAdapter[Any] | str, schemas: _Schemas) -> dict[str, Any]:
    if isinstance(answer, str):
        return {answer: {}}
    return {"application/json": {"schema": schemas[id(answer), "serialization"]}}


def _failure_response(schemas: _Schemas) -> dict[str, Any]:
    return {
        "description": "It failed; `error` says why, and whether trying again can help.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"error": schemas[id(_FAILURE), "serialization"]},
                    "required": ["error"],
                }
            }
        },
    }
