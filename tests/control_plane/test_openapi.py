"""The OpenAPI document: made from the application, kept in step with the file, and complete."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.told_plane import serving

from multinode import wire
from multinode.errors import InvalidRequest
from multinode_control_plane.api import schemas
from multinode_control_plane.api.openapi import document
from multinode_control_plane.api.parameters import Query, read_all
from multinode_control_plane.api.routes import ENDPOINTS

FILE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "openapi.json"
DOCUMENT = document(ENDPOINTS)


def test_the_file_is_in_step(pytestconfig: Any) -> None:
    """With --update-snapshots it is written; read its diff."""
    text = json.dumps(DOCUMENT, indent=1, ensure_ascii=False) + "\n"
    if pytestconfig.getoption("--update-snapshots"):
        FILE.write_text(text, encoding="utf-8")
    assert FILE.read_text(encoding="utf-8") == text, "pytest tests/control_plane/test_openapi.py --update-snapshots"  # fmt: skip


def test_it_is_told_without_a_key(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        with urllib.request.urlopen(f"{served.url}/v1/openapi.json", timeout=60) as answer:
            assert json.load(answer) == json.loads(json.dumps(DOCUMENT))


def test_every_reference_leads_somewhere() -> None:
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(DOCUMENT)):
        at: Any = DOCUMENT
        for part in reference.split("/"):
            at = at[part]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda item: f"{item.method} {item.path}")
def test_an_operation_says_what_it_does_and_who_may(endpoint: Any) -> None:
    operation = DOCUMENT["paths"][endpoint.path][endpoint.method.lower()]
    assert re.fullmatch(r"(?!GET |POST |PUT |DELETE )[A-Z].*[.]", operation["summary"])
    assert operation.get("x-role") == endpoint.role
    assert ("security" in operation) == endpoint.public
    for parameter in operation["parameters"]:
        assert parameter["description"]


def test_operations_have_names_of_their_own() -> None:
    names = [o["operationId"] for path in DOCUMENT["paths"].values() for o in path.values()]
    assert len(set(names)) == len(names) == len(ENDPOINTS)


def test_an_answer_that_is_a_matter_of_time_says_when_to_ask_again() -> None:
    responses = DOCUMENT["components"]["responses"]
    with_header = [
        name for name, each in responses.items() if "Retry-After" in each.get("headers", {})
    ]
    assert with_header == ["too_many_requests-too_many_wrong_keys"]


def test_what_is_narrowed_exists() -> None:
    for cls, name in schemas.NARROWED:
        assert name in getattr(wire, cls).fields


def test_a_schema_says_types_defaults_and_what_a_field_means() -> None:
    known = DOCUMENT["components"]["schemas"]
    settings, info = known["FunctionSettings"]["properties"], known["InvocationInfo"]
    assert settings["cpu"] == {"type": "number", "default": 0.1}
    assert settings["retry_on"]["type"] == ["array", "null"]
    assert "exception classes" in settings["retry_on"]["description"]
    assert info["required"] == list(wire.InvocationInfo.fields)
    assert info["properties"]["created_at"] == {"type": "string", "format": "date-time"}
    assert known["WaitRequest"]["required"] == ["invocation_ids"]


QUERIES = (
    Query("n", "", "number"),
    Query("w", "", "whole"),
    Query("f", "", "flag"),
    Query("t", "", "text", one_of=("a", "b")),
    Query("u", ""),
)


def test_a_query_is_read_as_it_is_declared() -> None:
    given = {"n": "1.5", "w": "7", "f": "true", "t": "b", "u": "", "other": "x"}
    assert read_all(QUERIES, given) == {"n": 1.5, "w": 7, "f": True, "t": "b", "u": None}
    assert read_all(QUERIES[2:3], {"f": "0"}) == {"f": False}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n", "-1"), ("n", "nan"), ("n", "inf"), ("n", "1e400"), ("n", "x"), ("w", "1.5"), ("w", "-1"),
        ("w", "²"), ("w", "٣"), ("w", "9" * 17), ("w", str(2**53)), ("f", "yes"), ("t", "c"), ("u", "a\0b"),
    ],
)  # fmt: skip
def test_what_a_query_may_not_say_is_refused(name: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{name}="):
        read_all(QUERIES, {name: text})
