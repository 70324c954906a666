"""What a worker is told at its start, also by control planes of later releases."""

import json

import pytest

from multinode.worker.launch import Launch, from_json

KNOWN = {"worker_id": "wrk-1", "claim_code": "c", "api_url": "http://127.0.0.1:1"}


def test_what_is_written_is_read():
    launch = Launch(**KNOWN, cpu=0.5, cgroups=None)
    assert vars(from_json(launch.to_json())) == vars(launch)


def test_what_a_later_release_tells_too_is_left_out():
    told = json.dumps({**KNOWN, "something_new": {"of": "later"}})
    assert vars(from_json(told)) == vars(Launch(**KNOWN))


@pytest.mark.parametrize("text", ["[]", "5", "{}", "no JSON"])
def test_what_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"not a launch|Expecting value"):
        from_json(text)
