import asyncio
import os
import signal
import socket
import threading
import time
from collections import deque
from typing import List

import pytest
from tests.sdk.callers_plane import CallersPlane, close_after, cut_off, reset, status

from multinode import errors, wire
from multinode.client import Client, path_of

OK = status(200, b"{}", "application/json", Multinode_Version="2.0.0")


@pytest.fixture
def plane():
    with CallersPlane() as plane:
        yield plane


@pytest.fixture(params=["blocking", "asynchronous"])
def call(request):
    """``Client.call``, and ``Client.acall`` in a loop of its own: both have to do the same."""

    def blocking(client, *args, **kwargs):
        try:
            return client.call(*args, **kwargs)
        finally:
            client.close()

    def asynchronous(client, *args, **kwargs):
        return asyncio.run(client.acall(*args, **kwargs))

    return blocking if request.param == "blocking" else asynchronous


def test_the_answer_is_an_instance_of_the_class(plane, call):
    plane.misbehave(
        status(
            200, wire.dumps(wire.StopRequest("now")), "application/json", Multinode_Version="2.7.1"
        )
    )

    assert call(plane.client(), wire.StopRequest, "GET", "/v1/x") == wire.StopRequest("now")


def test_lists_and_bytes_are_answers_too(plane, call):
    items = wire.dumps([wire.StopRequest("a"), wire.StopRequest("b")])
    plane.misbehave(
        status(200, items, "application/json", Multinode_Version="2.0.0"),
        status(200, b"\x00\x01", "application/gzip", Multinode_Version="2.0.0"),
    )

    found = call(plane.client(), List[wire.StopRequest], "GET", "/v1/x")

    assert [item.mode for item in found] == ["a", "b"]
    assert call(plane.client(), bytes, "GET", "/v1/x") == b"\x00\x01"


def test_the_body_is_sent_as_json_or_as_bytes(plane, call):
    plane.misbehave(OK, OK)

    call(plane.client(), wire.Empty, "PUT", "/v1/x", wire.StopRequest("now"))
    call(plane.client(), wire.Empty, "PUT", "/v1/x", b"\x00")

    assert [request[3] for request in plane.requests] == [b'{"mode":"now"}', b"\x00"]


def test_reset_connections_and_503_are_retried(plane, call):
    plane.misbehave(reset, status(503), cut_off, status(502), OK)

    assert call(plane.client(), wire.Empty, "GET", "/v1/x") == wire.Empty()
    assert len(plane.requests) == 5


def test_a_server_that_is_stopping_is_asked_again(plane, call):
    body = wire.dumps({"error": wire.ErrorBody("server_stopping", "It stops.")})
    plane.misbehave(status(503, body, "application/json", Multinode_Version="2.0.0"), OK)

    assert call(plane.client(), wire.Empty, "GET", "/v1/x") == wire.Empty()


def too_many(code, retry_after):
    body = wire.dumps({"error": wire.ErrorBody(code, "It is too much.")})
    headers = {"Multinode_Version": "2.0.0", "Retry_After": retry_after}
    return status(429, body, "application/json", **headers)


@pytest.mark.parametrize("is_told_by_us", [True, False])
def test_what_came_too_often_is_asked_again_after_retry_after(plane, call, is_told_by_us):
    busy = too_many("too_many_requests", "1") if is_told_by_us else status(429, Retry_After="1")
    plane.misbehave(busy, status(503), OK)

    began_at = time.monotonic()
    assert call(plane.client(), wire.Empty, "GET", "/v1/x") == wire.Empty()
    assert time.monotonic() - began_at >= 1
    assert len(plane.requests) == 3


@pytest.mark.parametrize("retry_after", ["", "-1", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_without_seconds_it_is_asked_again_as_one_that_is_away(plane, call, retry_after):
    plane.misbehave(too_many("too_many_requests", retry_after), OK)

    assert call(plane.client(), wire.Empty, "GET", "/v1/x") == wire.Empty()


def test_nobody_waits_for_longer_than_retry_s_without_a_word(plane, call):
    plane.misbehave(too_many("too_many_requests", "6"), OK)

    began_at = time.monotonic()
    with pytest.raises(errors.TooManyRequests, match="too much"):
        call(plane.client(retry_s=5), wire.Empty, "GET", "/v1/x")
    assert time.monotonic() - began_at < 5
    assert len(plane.requests) == 1


def test_a_wrong_key_is_not_tried_again(plane, call):
    plane.misbehave(too_many("too_many_wrong_keys", "1"), OK)

    with pytest.raises(errors.NotLoggedIn, match="too much"):
        call(plane.client(), wire.Empty, "GET", "/v1/x")
    assert len(plane.requests) == 1


def test_after_retry_s_it_is_unreachable_and_the_message_names_the_url(call):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # not listening: refused
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(errors.ControlPlaneUnreachable) as caught:
            call(Client(url, "key", retry_s=0.2), wire.Empty, "GET", "/v1/x")

    assert url in caught.value.message
    assert "multinode doctor" in caught.value.hint


def test_retry_s_of_zero_asks_once(plane, call):
    plane.misbehave(status(503), OK)

    with pytest.raises(errors.ControlPlaneUnreachable, match="503"):
        call(plane.client(retry_s=0), wire.Empty, "GET", "/v1/x")
    assert len(plane.requests) == 1


def test_an_error_is_raised_as_the_class_of_its_code(plane, call):
    body = wire.dumps(
        {"error": wire.ErrorBody("project_not_found", "No project 'a'.", "List them.")}
    )
    plane.misbehave(status(404, body, "application/json", Multinode_Version="2.0.0"))

    with pytest.raises(errors.ProjectNotFound) as caught:
        call(plane.client(), wire.Empty, "GET", "/v1/x")
    assert (caught.value.message, caught.value.hint) == ("No project 'a'.", "List them.")


def test_an_error_of_an_unknown_code_is_a_multinode_error(plane, call):
    body = wire.dumps({"error": wire.ErrorBody("of_a_later_release", "Something.")})
    plane.misbehave(status(409, body, "application/json", Multinode_Version="2.9.0"))

    with pytest.raises(errors.MultinodeError, match="Something") as caught:
        call(plane.client(), wire.Empty, "GET", "/v1/x")
    assert type(caught.value) is errors.MultinodeError


@pytest.mark.parametrize("code", [200, 404, 500])
def test_a_proxys_html_is_an_unexpected_answer(plane, call, code):
    plane.misbehave(status(code, b"<html>\n<h1>Welcome to nginx</h1>"))

    with pytest.raises(errors.UnexpectedAnswer) as caught:
        call(plane.client(), wire.Empty, "GET", "/v1/x")
    assert plane.url in caught.value.message
    assert str(code) in caught.value.message
    assert "<html> <h1>Welcome to nginx</h1>" in caught.value.message


def test_json_without_our_header_is_an_unexpected_answer(plane, call):
    plane.misbehave(status(200, b"{}", "application/json"))

    with pytest.raises(errors.UnexpectedAnswer, match="Multinode-Version"):
        call(plane.client(), wire.Empty, "GET", "/v1/x")


def test_json_of_another_shape_is_an_unexpected_answer(plane, call):
    plane.misbehave(status(200, b"[1]", "application/json", Multinode_Version="2.0.0"))

    with pytest.raises(errors.UnexpectedAnswer):
        call(plane.client(), wire.StartAnswer, "GET", "/v1/x")


@pytest.mark.parametrize("code", [200, 400])
def test_another_major_version_is_refused(plane, call, code):
    plane.misbehave(status(code, b"{}", "application/json", Multinode_Version="3.1.0"))

    with pytest.raises(errors.IncompatibleVersion, match=r"3\.1\.0"):
        call(plane.client(), wire.Empty, "GET", "/v1/x")


def test_401_is_not_logged_in(plane, call):
    plane.misbehave(status(401, b"", "text/plain"))

    with pytest.raises(errors.NotLoggedIn, match="multinode login"):
        call(plane.client(), wire.Empty, "GET", "/v1/x")


def test_connections_are_kept_alive(plane):
    client = plane.client()
    plane.misbehave(OK, OK, OK)

    for _ in range(3):
        client.call(wire.Empty, "GET", "/v1/x")
    client.close()

    assert plane.connections == 1


def test_connections_are_kept_alive_in_a_loop(plane):
    client = plane.client()
    plane.misbehave(OK, OK, OK)

    async def three():
        for _ in range(3):
            await client.acall(wire.Empty, "GET", "/v1/x")

    asyncio.run(three())
    assert plane.connections == 1


def test_each_loop_has_connections_of_its_own(plane):
    client = plane.client()
    plane.misbehave(OK, OK)

    asyncio.run(client.acall(wire.Empty, "GET", "/v1/x"))
    asyncio.run(client.acall(wire.Empty, "GET", "/v1/x"))

    assert plane.connections == 2


def test_a_stale_connection_is_replaced_at_once_whatever_retry_s_is(plane):
    client = plane.client(retry_s=0)
    plane.misbehave(lambda handler: (OK(handler), reset(handler)), OK)

    client.call(wire.Empty, "GET", "/v1/x")
    assert client.call(wire.Empty, "GET", "/v1/x") == wire.Empty()
    client.close()

    assert plane.connections == 2


def test_a_connection_whose_exchange_was_interrupted_is_not_used_again(plane):
    client = plane.client()
    is_interrupted = threading.Event()

    class Interrupted(BaseException):
        """As InvocationCancelledError, which may be raised anywhere."""

    def interrupt(*_):
        raise Interrupted

    def answer(mode):
        body = wire.dumps(wire.StopRequest(mode))
        return status(200, body, "application/json", Multinode_Version="2.0.0")

    def late(handler):
        os.kill(os.getpid(), signal.SIGUSR1)
        is_interrupted.wait(10)
        answer("of the interrupted request")(handler)

    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        plane.misbehave(OK, late, answer("right"))
        client.call(wire.Empty, "GET", "/v1/x")
        with pytest.raises(Interrupted):
            client.call(wire.Empty, "GET", "/v1/x")
        is_interrupted.set()
        assert client.call(wire.StopRequest, "GET", "/v1/x").mode == "right"
    finally:
        signal.signal(signal.SIGUSR1, previous)
    client.close()

    assert plane.connections == 2


def test_threads_share_a_client(plane):
    client = plane.client()
    plane.misbehave(*[OK] * 40)
    answers = []

    def ask():
        answers.extend(client.call(wire.Empty, "GET", "/v1/x") for _ in range(10))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()

    assert answers == [wire.Empty()] * 40
    assert plane.connections <= 4


def test_connections_are_closed_although_another_thread_takes_the_last_one(plane):
    class Raced(deque):
        def __bool__(self):
            return True

    client = plane.client()
    client._idle = Raced()
    client.close()


def test_a_fork_does_not_use_its_parents_connections(plane):
    client = plane.client()
    plane.misbehave(OK, OK, OK)
    client.call(wire.Empty, "GET", "/v1/x")

    pid = os.fork()
    if pid == 0:
        try:
            client.call(wire.Empty, "GET", "/v1/x")
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, ended = os.waitpid(pid, 0)
    client.call(wire.Empty, "GET", "/v1/x")
    client.close()

    assert ended == 0
    assert plane.connections == 2


def _chunks(*pieces, is_whole=True):
    def send(handler):
        handler.send_response(200)
        handler.send_header("Multinode-Version", "2.0.0")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n" if is_whole else b"")
        handler.wfile.flush()
        handler.close_connection = True

    return send


def test_a_stream_is_its_lines_without_heartbeats(plane):
    plane.misbehave(_chunks(b'{"a"', b":1}\n\n", b"\n", b'{"b":2}\n{"c":3}'))

    assert list(plane.client().stream("GET", "/v1/x")) == [b'{"a":1}', b'{"b":2}', b'{"c":3}']


def test_a_stream_is_opened_with_retries(plane):
    plane.misbehave(reset, status(503), _chunks(b"{}\n"))

    assert list(plane.client().stream("POST", "/v1/x", wire.Empty())) == [b"{}"]


def test_a_stream_that_breaks_off_is_unreachable(plane):
    plane.misbehave(_chunks(b"{}\n", is_whole=False))
    lines = plane.client().stream("GET", "/v1/x")

    assert next(lines) == b"{}"
    with pytest.raises(errors.ControlPlaneUnreachable, match="broke off"):
        next(lines)


def test_an_error_in_place_of_a_stream_is_raised(plane):
    body = wire.dumps({"error": wire.ErrorBody("invocation_not_found", "No.")})
    plane.misbehave(status(404, body, "application/json", Multinode_Version="2.0.0"))

    with pytest.raises(errors.InvocationNotFound):
        next(plane.client().stream("GET", "/v1/x"))


@pytest.mark.parametrize(
    "url",
    ["", "localhost:80", "ftp://x", "http://", "http://x:port", "http://x:70000", "http://x?a=b", "http://x/#a", "http://[x",
     "http://user@x", "http://x/a b"],
)  # fmt: skip
def test_a_url_that_cannot_be_right_is_refused(url):
    with pytest.raises(errors.InputError, match="not the URL"):
        Client(url, "key")


@pytest.mark.parametrize(
    ("url", "host", "path", "origin"),
    [
        ("http://127.0.0.1:9470", "127.0.0.1", "", "http://127.0.0.1:9470"),
        ("HTTPS://Example.com/mn/", "example.com", "/mn", "https://example.com:443"),
        ("http://[::1]:80", "::1", "", "http://[::1]:80"),
        ("http://bücher.example", "bücher.example", "", "http://bücher.example:80"),
    ],
)
def test_a_url_is_taken_apart(url, host, path, origin):
    address = Client(url, "key")._address

    assert (address.host, address.path, address.origin) == (host, path, origin)


@pytest.mark.parametrize("key", ["", "a b", "a\r\nHost: x", "schlüssel"])
def test_a_key_that_cannot_be_right_is_refused_and_not_shown(key):
    with pytest.raises(errors.InputError) as caught:
        Client("http://localhost", key)
    assert not key or key not in str(caught.value)


def test_a_path_prefix_is_kept(plane):
    plane.misbehave(OK)
    client = Client(plane.url + "/multinode/", "key", retry_s=0)

    client.call(wire.Empty, "GET", "/v1/x")
    client.close()

    assert plane.requests[0][1] == "/multinode/v1/x"


def test_path_of_quotes_segments_and_leaves_out_none():
    path = path_of("projects", "a/b c", status=None, in_flight=True, after=3)

    assert path == "/v1/projects/a%2Fb%20c?in_flight=true&after=3"


def test_a_good_answer_before_a_close_is_not_lost(plane):
    plane.misbehave(close_after)
    client = plane.client(retry_s=0)

    with pytest.raises(errors.ProjectNotFound):
        client.call(wire.VersionInfo, "GET", "/v1/projects/none/versions/latest")
    client.close()
