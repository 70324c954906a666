"""Arguments and results as plain JSON, for callers without the SDK. Nothing is decoded here: classes stay jsonpickle's objects."""

from __future__ import annotations

from typing import Any

from multinode import codec, wire
from multinode.errors import DecodingError, InvalidRequest


def with_inputs(request: wire.StartRequest) -> wire.StartRequest:
    """The request with its plain arguments as an input. Raises InvalidRequest where it has both, and what `codec` raises."""
    if request.args is None and request.kwargs is None:
        return request
    if request.inputs:
        message = "A request has either inputs, or args and kwargs."
        raise InvalidRequest(message, "Leave out inputs, which are jsonpickle's text.")
    text = codec.encode_plain_input(request.args or [], request.kwargs or {})
    return request.replace(inputs=[text], args=None, kwargs=None)


def with_result(info: wire.InvocationInfo) -> wire.InvocationInfo:
    """The invocation with its result as plain JSON too."""
    return info.replace(plain_result=shown(info.result))


def with_values(answer: wire.ValuesAnswer) -> wire.ValuesAnswer:
    """The values as plain JSON too."""
    return answer.replace(plain_values=[shown(item.value) for item in answer.values])


def with_input(detail: wire.InvocationDetail) -> wire.InvocationDetail:
    """The invocation's input and result as plain JSON too."""
    return detail.replace(
        invocation=with_result(detail.invocation), plain_input=shown(detail.input)
    )


def shown(text: str | None) -> Any:
    """A value's text as plain JSON; None for none, and for text that is no JSON."""
    try:
        return None if text is None else codec.plain(text)
    except DecodingError:
        return None
