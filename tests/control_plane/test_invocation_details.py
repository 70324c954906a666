"""Looking at attempts: an invocation with all of them, and one of them by its own id."""

import pytest

from multinode.errors import ExecutionNotFound
from multinode_control_plane.service import invocations


def test_an_execution_is_shown_alone_with_its_invocation(bench):
    bench.deploy(f={"max_retries": 1})
    invocation_id = bench.start()
    bench.run(invocation_id, "failed")
    bench.skew_s += 60
    bench.tick()
    bench.run(invocation_id)
    whole = bench.look(invocations.detail, invocation_id, 0.0)
    assert [item.attempt for item in whole.executions] == [1, 2]
    for execution in whole.executions:
        found = bench.look(invocations.detail_of_execution, execution.execution_id, 0.0)
        assert found.invocation == whole.invocation
        assert found.executions == [execution]


def test_an_execution_that_is_not_there_is_not_found(bench):
    with pytest.raises(ExecutionNotFound, match="There is no execution 'exe-none'"):
        bench.look(invocations.detail_of_execution, "exe-none", 0.0)


def test_an_attempt_that_was_not_made_is_not_found():
    invocations.check_attempt("inv-1", 2, [1, 1, 2])
    invocations.check_attempt("inv-1", None, [])
    for known, so_far in (([1, 1], 1), ([], 0)):
        with pytest.raises(ExecutionNotFound, match="inv-1 has no attempt 7") as caught:
            invocations.check_attempt("inv-1", 7, known)
        assert caught.value.hint == f"It has had {so_far} so far."
