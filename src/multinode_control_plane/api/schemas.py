"""JSON Schemas (2020-12) of what crosses the network, made from the annotations and docstrings of `wire`'s classes.

An annotation says the type; the docstring below a field and that of its class are the descriptions. What an annotation cannot say,
the words and bounds that the server checks, stands in `NARROWED`.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any

from multinode import wire
from multinode.limits import MAX_DELAY_S, MAX_START_BATCH
from multinode.records import Record

Schema = dict[str, Any]

DIGEST: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
OUTCOMES = ("succeeded", "failed", "cancelled", "timed_out", "lost")
NARROWED: dict[tuple[str, str], Schema] = {
    **{
        (cls, "status"): {"enum": list(wire.STATUSES)}
        for cls in ("InvocationInfo", "InvocationItem")
    },
    **{(cls, "role"): {"enum": list(wire.ROLES)} for cls in ("KeyRequest", "KeyInfo")},
    ("KeyRequest", "name"): {"pattern": "^[A-Za-z0-9_.-]{1,63}$"},
    ("StopRequest", "mode"): {"enum": ["drain", "now", "restart"]},
    ("StartRequest", "inputs"): {"maxItems": MAX_START_BATCH},
    ("StartRequest", "delay_s"): {"minimum": 0, "maximum": MAX_DELAY_S},
    ("WaitRequest", "invocation_ids"): {"minItems": 1, "maxItems": 10_000},
    ("WaitRequest", "wait_s"): {"minimum": 0},
    ("ExecutionInfo", "state"): {"enum": ["starting", "running", "ended"]},
    ("ExecutionInfo", "outcome"): {"enum": [*OUTCOMES, None]},
    ("ExecutionEnd", "outcome"): {"enum": list(OUTCOMES)},
    ("LogRecord", "stream"): {"enum": ["stdout", "stderr", "system"]},
    ("Finding", "state"): {"enum": ["ok", "note", "FAIL"]},
    ("Order", "order"): {"enum": ["cancel", None]},
    ("Assignment", "kind"): {"enum": ["invocation", "describe"]},
    ("FunctionDescription", "kind"): {
        "enum": ["function", "coroutine", "generator", "async_generator"]
    },
}
"""What a field holds besides its type, by class and field."""

_SCALARS: dict[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "Any": {},
}


def reference(cls: type) -> Schema:
    """Where the document has the class's schema."""
    return {"$ref": f"#/components/schemas/{cls.__name__}"}


def of_hint(hint: str, module: str) -> Schema:
    """The schema of a field's annotation: a scalar, a class that ``module`` has, Optional, List or Dict of one."""
    outer, _, inner = hint.partition("[")
    if outer == "Optional":
        return _or_null(of_hint(inner[:-1], module))
    if outer == "List":
        return {"type": "array", "items": of_hint(inner[:-1], module)}
    if outer == "Dict":
        values = of_hint(inner[:-1].partition(", ")[2], module)
        return {"type": "object", "additionalProperties": values}
    scalar = _SCALARS.get(hint)
    return dict(scalar) if scalar is not None else reference(getattr(sys.modules[module], hint))


def _or_null(schema: Schema) -> Schema:
    if "type" in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]} if schema else {}


def of_class(cls: type[Record], *, answered: bool) -> Schema:
    """The schema of a class. What is only ``answered`` has all of its fields; what is sent may lack those with a default."""
    described = _described(cls)
    properties = {name: _field(cls, name, described.get(name, "")) for name in cls.fields}
    if not answered:
        for name in cls.fields:
            if name in vars(cls):
                properties[name]["default"] = wire.to_plain(vars(cls)[name])
    required = [name for name in cls.fields if answered or name not in vars(cls)]
    schema: Schema = {"type": "object", "description": _text(cls.__doc__), "properties": properties}
    return {**schema, "required": required} if required else schema


def _field(cls: type[Record], name: str, about: str) -> Schema:
    schema = of_hint(cls.__annotations__[name], cls.__module__)
    schema.update(NARROWED.get((cls.__name__, name), {}))
    if name.endswith("_at") and "string" in schema.get("type", ""):
        schema["format"] = "date-time"
    if about:
        schema["description"] = about
    return schema


def with_parts(classes: Iterable[type[Record]]) -> set[type[Record]]:
    """The classes and those of which their fields are made, and so on."""
    found: set[type[Record]] = set()
    queue = list(classes)
    while queue:
        cls = queue.pop()
        if cls not in found:
            found.add(cls)
            queue.extend(_parts(cls))
    return found


def _parts(cls: type[Record]) -> Iterator[type[Record]]:
    for hint in cls.__annotations__.values():
        part = getattr(
            sys.modules[cls.__module__], re.split(r"[\[\], ]+", hint.rstrip("]"))[-1], None
        )
        if isinstance(part, type) and issubclass(part, Record):
            yield part


def _described(cls: type[Record]) -> dict[str, str]:
    """The docstring below each field that has one."""
    found = {}
    body = _classes(cls.__module__)[cls.__name__].body
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(field.target, ast.Name)
            assert isinstance(below.value, ast.Constant)
            found[field.target.id] = _text(str(below.value.value))
    return found


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module as its source has them."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _text(docstring: str | None) -> str:
    """A docstring as Markdown: its paragraphs, each in a line."""
    paragraphs = inspect.cleandoc(docstring or "").replace("``", "`").split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in paragraphs)
