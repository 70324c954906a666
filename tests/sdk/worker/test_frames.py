"""Messages come out of pieces of any size as they went in."""

import socket

import pytest

from multinode.worker import frames


def test_messages_in_single_bytes_and_all_at_once():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames.send(ours, "value", value="\ud800é")
        frames.send(ours, "run")
        data = theirs.recv(1000)
    expected = [{"kind": "value", "value": "\ud800é"}, {"kind": "run"}]
    assert frames.FrameBuffer().feed(data) == expected
    buffer = frames.FrameBuffer()
    assert [frame for byte in data for frame in buffer.feed(bytes([byte]))] == expected


@pytest.mark.parametrize("data", [b"xxxxxxxx", b"\0\0\0\2[]", b"\0\0\0\2{}", b"\0\0\0\1\xff"])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(frames.NotAFrame):
        frames.FrameBuffer().feed(data)


def test_end_of_the_channel_is_told():
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with pytest.raises(EOFError):
            frames.receive(theirs)
