"""What servers and proxies answer, byte for byte, and what becomes of it."""

import socket
import threading

import pytest

from multinode.http_connection import ClosedUnanswered, HttpConnection, NotHttp


@pytest.fixture
def answering():
    """Opens a connection to a server that sends ``pieces``, each after the client took the one before, and closes."""
    opened = []

    def connect(*pieces):
        listener = socket.create_server(("127.0.0.1", 0))

        def serve():
            connection, _ = listener.accept()
            with connection, listener:
                received.append(connection.recv(65536))
                for piece in pieces:
                    connection.sendall(piece)

        received = []
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        made = HttpConnection("127.0.0.1", listener.getsockname()[1], timeout_s=10)
        made.received = received
        opened.append((made, thread))
        return made

    yield connect
    for made, thread in opened:
        made.close()
        thread.join(60)


def ask(connection, method="GET", body=None):
    head = connection.send(method, "/v1/x?y=%20", {"Authorization": "Bearer k"}, body, 10)
    return head, b"".join(connection.body())


def test_the_request_has_host_headers_and_length(answering):
    connection = answering(b"HTTP/1.1 204 No Content\r\n\r\n")

    ask(connection, "PUT", b"body")

    head, _, body = connection.received[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "PUT /v1/x?y=%20 HTTP/1.1"
    assert lines[1].startswith("Host: 127.0.0.1:")
    assert {"Authorization: Bearer k", "Content-Length: 4"} <= set(lines)
    assert body == b"body"


@pytest.mark.parametrize(
    ("answer", "body", "is_reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length:5\r\nConnection: close\r\n\r\nhello", b"hello", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", b"hello", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", b"hi", True),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3;ext=1\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: 1\r\n\r\n",
            b"hello",
            True,
        ),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_bodies_of_each_kind_are_read_to_their_end(answering, answer, body, is_reusable, size):
    connection = answering(*(answer[at : at + size] for at in range(0, len(answer), size)))

    head, found = ask(connection)

    assert head.status in (200, 204)
    assert found == body
    assert connection.is_reusable is is_reusable


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", ClosedUnanswered),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\nContent-", NotHttp),
        (b"HTTP/1.1 abc\r\n\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", NotHttp),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -9\r\n\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", NotHttp),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, NotHttp),
    ],
)
def test_what_is_no_whole_answer_is_an_error_and_the_connection_spent(answering, answer, error):
    connection = answering(answer)

    with pytest.raises(error):
        ask(connection)

    assert connection.is_reusable is False


def test_an_answer_to_head_has_a_length_and_no_body(answering):
    connection = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")

    assert ask(connection, "HEAD")[1] == b""
    assert connection.is_reusable


def test_two_answers_that_come_together_are_told_apart(answering):
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
    connection = answering(one + b"a" + one + b"b")

    assert [ask(connection)[1], ask(connection)[1]] == [b"a", b"b"]


def test_a_body_that_is_refused_before_it_is_sent_has_its_answer_read():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nmuch")
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):  # as a server does that lingers before it closes
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        connection = HttpConnection("127.0.0.1", listener.getsockname()[1], timeout_s=10)
        head, body = ask(connection, "PUT", bytes(8 * 1024 * 1024))
        connection.close()
        thread.join(60)

    assert (head.status, body) == (413, b"much")
