"""The OpenAPI 3.1 document of ``/v1``, made from the endpoints and from `wire`: nothing in it is written twice."""

from __future__ import annotations

import inspect
import re
import typing
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from multinode import wire
from multinode.errors import (
    HTTP_STATUS,
    InternalError,
    InvalidRequest,
    MultinodeError,
    NotAllowed,
    NotLoggedIn,
    RequestTooLarge,
    ServerStopping,
    StorageFull,
    TooManyRequests,
    TooManyWrongKeys,
)
from multinode.records import Record
from multinode_control_plane import __version__
from multinode_control_plane.api import schemas
from multinode_control_plane.api.calls import Endpoint
from multinode_control_plane.api.parameters import FALSE, MAX_WHOLE, TRUE, Query
from multinode_control_plane.api.schemas import Schema

ALWAYS: tuple[type[MultinodeError], ...] = (
    InvalidRequest,
    InternalError,
    StorageFull,
    ServerStopping,
)
"""Errors that any endpoint may answer."""

RETRY_AFTER: Schema = {
    "Retry-After": {
        "description": "In how many seconds to ask again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    }
}
ARCHIVE = "application/gzip"
LINES = "application/x-ndjson"
TEXT = "text/plain"
INTRODUCTION = (
    "Run Python functions somewhere else. An id alone names an invocation, its status is the server's, and waiting is a parameter "
    "(`wait_s`, 60 at most): nobody has to poll. Every answer has the header `Multinode-Version`."
)

PATH_PARAMETERS: dict[str, tuple[str, Schema]] = {
    "project": ("The project's name.", {"type": "string", "minLength": 1}),
    "function": ("The function's name.", {"type": "string", "minLength": 1}),
    "version": ("A version's id, its number, or `latest`.", {"type": "string", "minLength": 1}),
    "digest": ("A SHA-256 in hexadecimal digits.", schemas.DIGEST),
    "id": ("The id, as it was answered.", {"type": "string", "minLength": 1}),
    "name": ("The key's name.", {"type": "string", "minLength": 1}),
}


def document(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """The document of these endpoints."""
    known = list(endpoints)
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for item in known:
        paths[item.path][item.method.lower()] = _operation(item)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Multinode",
            "version": __version__,
            "summary": "The REST API of the control plane",
            "description": INTRODUCTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"key": []}],
        "paths": dict(paths),
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key (`mnk_…`), or a worker's token.",
                }
            },
            "responses": _responses(known),
            "schemas": _schemas(known),
        },
    }


def _operation(item: Endpoint) -> dict[str, Any]:
    summary = (inspect.getdoc(item.handler) or "").partition("\n")[0]
    found: dict[str, Any] = {
        "operationId": f"{item.handler.__module__.rpartition('.')[2]}.{item.handler.__name__}",
        "tags": [_tag(item)],
        "summary": summary.replace("``", "`"),
        "description": _who(item),
        "parameters": [*_path_parameters(item.path), *map(_query_parameter, item.query)],
        "responses": {"200": _answer(item), **_failures(item)},
    }
    if item.role:
        found["x-role"] = item.role
    if item.public:
        found["security"] = []
    if item.body is not None:
        found["requestBody"] = _body("application/json", schemas.reference(item.body))
    elif item.archive and item.method == "PUT":
        found["requestBody"] = _body(ARCHIVE, {"type": "string", "format": "binary"})
    return found


def _tag(item: Endpoint) -> str:
    """The first part of the path that is a noun: ``invocations`` for what is below a project's function, too."""
    nouns = re.findall(r"/([a-z]+)", item.path.removeprefix("/v1"))
    last = str(nouns[-1])
    return last if last in ("invocations", "environments", "versions") else str(nouns[0])


def _who(item: Endpoint) -> str:
    if item.public:
        return "Needs no key."
    who = [f"the role `{item.role}` or a higher one"] if item.role else []
    who += ["a worker's token"] if item.worker else []
    return f"Needs {', or '.join(who)}."


def _path_parameters(path: str) -> list[dict[str, Any]]:
    found = []
    for name in re.findall(r"{(\w+)}", path):
        about, schema = PATH_PARAMETERS[name]
        found.append(
            {"name": name, "in": "path", "required": True, "description": about, "schema": schema}
        )
    return found


_KINDS: dict[str, Schema] = {
    "text": {"type": "string"},
    "number": {"type": "number", "minimum": 0},
    "whole": {"type": "integer", "minimum": 0, "maximum": MAX_WHOLE},
    "flag": {"type": "string", "enum": [*TRUE, *FALSE]},
}


def _query_parameter(query: Query) -> dict[str, Any]:
    schema = {**_KINDS[query.kind], **({"enum": list(query.one_of)} if query.one_of else {})}
    return {"name": query.name, "in": "query", "description": query.about, "schema": schema}


def _body(media_type: str, schema: Schema) -> dict[str, Any]:
    return {"required": True, "content": {media_type: {"schema": schema}}}


def _answer(item: Endpoint) -> dict[str, Any]:
    if item.lines is not None:
        about = (
            f"One {item.lines.__name__} a line, each a JSON object; a blank line is a heartbeat."
        )
        schema: Schema = {"type": "string", "x-line": schemas.reference(item.lines)}
        return {"description": about, "content": {LINES: {"schema": schema}}}
    if item.archive and item.method == "GET":
        schema = {"type": "string", "format": "binary"}
        return {"description": "The archive.", "content": {ARCHIVE: {"schema": schema}}}
    if item.text:
        schema = {"type": "string"}
        return {"description": "The text.", "content": {TEXT: {"schema": schema}}}
    schema = _of_annotation(_answered(item))
    return {"description": "It worked.", "content": {"application/json": {"schema": schema}}}


def _answered(item: Endpoint) -> Any:
    """The handler's return annotation."""
    return typing.get_type_hints(item.handler)["return"]


def _of_annotation(hint: Any) -> Schema:
    if typing.get_origin(hint) is list:
        return {"type": "array", "items": _of_annotation(typing.get_args(hint)[0])}
    if typing.get_origin(hint) is dict:
        return {"type": "object", "additionalProperties": _of_annotation(typing.get_args(hint)[1])}
    return {"type": "string"} if hint is str else {} if hint is Any else schemas.reference(hint)


def failures(item: Endpoint) -> tuple[type[MultinodeError], ...]:
    """Every error that the endpoint may answer."""
    keys = () if item.public else (NotLoggedIn, NotAllowed, TooManyRequests, TooManyWrongKeys)
    sizes = () if item.body is None else (RequestTooLarge,)
    return (*keys, *item.errors, *sizes, *ALWAYS)


def _codes(item: Endpoint) -> dict[int, list[type[MultinodeError]]]:
    """The errors by their status."""
    by_status: dict[int, list[type[MultinodeError]]] = defaultdict(list)
    for cls in sorted(failures(item), key=lambda cls: cls.code):
        by_status[HTTP_STATUS[cls.code]].append(cls)
    return dict(sorted(by_status.items()))


def _failures(item: Endpoint) -> dict[str, Any]:
    """The answers that are no success, by status."""
    return {
        str(status): {"$ref": f"#/components/responses/{_name(classes)}"}
        for status, classes in _codes(item).items()
    }


def _name(classes: list[type[MultinodeError]]) -> str:
    return "-".join(cls.code for cls in classes)


def _responses(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """Each set of errors that a status may stand for."""
    found = [classes for item in endpoints for classes in _codes(item).values()]
    return {_name(classes): _response(classes) for classes in sorted(found, key=_name)}


def _response(classes: list[type[MultinodeError]]) -> dict[str, Any]:
    about = [
        f"`{cls.code}`: {(inspect.getdoc(cls) or '').partition(chr(10))[0]}" for cls in classes
    ]
    body = {
        "allOf": [schemas.reference(wire.ErrorBody)],
        "properties": {"code": {"enum": [cls.code for cls in classes]}},
    }
    schema = {"type": "object", "properties": {"error": body}, "required": ["error"]}
    response = {
        "description": " ".join(about),
        "content": {"application/json": {"schema": schema}},
    }
    is_matter_of_time = HTTP_STATUS[classes[0].code] == HTTP_STATUS[TooManyRequests.code]
    return {**response, "headers": RETRY_AFTER} if is_matter_of_time else response


def _schemas(endpoints: list[Endpoint]) -> dict[str, Schema]:
    sent = schemas.with_parts(item.body for item in endpoints if item.body is not None)
    answered = schemas.with_parts(
        [wire.ErrorBody, *(cls for item in endpoints for cls in _classes_of(item))]
    )
    return {
        cls.__name__: schemas.of_class(cls, answered=cls not in sent)
        for cls in sorted(sent | answered, key=lambda cls: cls.__name__)
    }


def _classes_of(item: Endpoint) -> list[type[Record]]:
    hint = item.lines or _answered(item)
    parts = (hint, *typing.get_args(hint))
    return [part for part in parts if isinstance(part, type) and issubclass(part, Record)]
