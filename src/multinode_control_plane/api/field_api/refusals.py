"""Errors in the words of 2023: its clients recognise a status together with the exact text."""

from __future__ import annotations

from starlette.responses import Response

from multinode import wire
from multinode.errors import (
    HTTP_STATUS,
    FunctionInputSizeLimitExceeded,
    InvalidRequest,
    MultinodeError,
)

OFFSET_IS_INVALID = "The next offset is in an invalid format"
NO_PARENT_FUNCTION = "The parent function name is missing"
NO_PARENT_ID = "The parent invocation ID is missing"
NO_PARENT = "The ID of the parent invocation is invalid"
NAME_IS_TOO_LONG = "The project name is too long"
PROJECT_EXISTS = "A project with this name already exists."
INVOCATION_IS_OVER = "This invocation has already terminated"

KNOWN: dict[str, tuple[int, str]] = {
    "not_logged_in": (403, "The API key is invalid"),
    "project_being_deleted": (400, "The project is being deleted"),
    "project_not_found": (404, "A project with this name does not exist"),
    "version_not_found": (404, "A version with this ID does not exist for this project"),
    "function_not_found": (
        404,
        "A function with this name does not exist for this project version",
    ),
    "invocation_not_found": (404, "An invocation with this ID does not exist for this function"),
    "execution_not_found": (404, "An execution with this ID does not exist for this invocation"),
}
"""Status and text by the code of an error of ours; others have their own status, and our text."""


def refusal(error: MultinodeError) -> Response:
    """``{"detail": text}``; what does not validate has a list of faults."""
    if isinstance(error, (InvalidRequest, FunctionInputSizeLimitExceeded)):
        fault = {"loc": ["body"], "msg": str(error), "type": "value_error"}
        return _response(422, [fault])
    if error.code == "invalid_input":
        return _response(400, str(error))
    status, text = KNOWN.get(error.code, (HTTP_STATUS.get(error.code, 500), str(error)))
    return _response(status, text)


def _response(status: int, detail: object) -> Response:
    return Response(wire.dumps({"detail": detail}), status, media_type="application/json")
