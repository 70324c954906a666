"""A worker that serves several invocations, as the control plane sees it."""

import os
import signal

import pytest

from multinode import limits, wire
from multinode.worker.serving import Serving

PID = """
calls = 0

@mn.function()
def f(*args):
    global calls
    calls += 1
    print("call", calls, *args)
    return [os.getpid(), calls, *args]
"""


def test_worker_serves_one_invocation_after_another(bench):
    run = bench.run(PID, "a", max_invocations=0)
    pid, calls, word = run.result()
    assert (calls, word) == (1, "a")
    second, third = run.hand("b"), run.hand("c")
    assert second.result() == [pid, 2, "b"]
    assert third.result() == [pid, 3, "c"]
    run.wait_asking(4)
    run.dismiss()
    assert run.gone() == 0
    assert run.record.exchanges == 1
    assert len(run.record.claims) == 1


def test_end_is_told_with_the_question_for_more(bench):
    run = bench.run(PID, max_invocations=0)
    run.hand().result()
    run.wait_asking(3)
    assert [len(request.reports or []) for request in run.record.nexts] == [1, 1]
    assert [request.number for request in run.record.nexts] == [2, 3]
    assert run.record.nexts[0].wait_s > 20


def test_worker_ends_when_it_has_served_its_number(bench):
    run = bench.run(PID, max_invocations=2)
    first = run.result()
    assert run.hand().result() == [first[0], 2]
    assert run.gone() == 0
    assert [request.number for request in run.record.nexts] == [2]


def test_worker_started_ahead_imports_and_waits(bench):
    run = bench.run("print('imported')" + PID, is_ahead=True, max_invocations=2)
    run.wait_asking(1)
    assert run.record.nexts[0].import_ms > 0
    assert run.record.claims == []
    first = run.hand("a")
    pid, calls, _ = first.result()
    assert calls == 1
    assert run.hand("b").result() == [pid, 2, "b"]
    assert run.gone() == 0
    assert run.log() == "imported\n"
    assert first.log() == "call 1 a\n"


def test_worker_started_ahead_for_one_invocation_ends_after_it(bench):
    run = bench.run(PID, is_ahead=True)
    assert run.hand("a").result()[1:] == [1, "a"]
    assert run.gone() == 0


@pytest.mark.parametrize("source", ["1 / 0", "os._exit(3)"])
def test_worker_started_ahead_whose_import_fails_exits_with_status_1(bench, source):
    run = bench.run(f"{source}\n{PID}", is_ahead=True)
    assert os.WEXITSTATUS(run.gone()) == 1
    assert run.record.nexts == []


def test_each_execution_has_its_own_log(bench):
    run = bench.run(PID, "a", max_invocations=3)
    run.result()
    second, third = run.hand("b"), run.hand("c")
    assert run.gone() == 0
    assert run.log() == "call 1 a\n"
    assert second.log() == "call 2 b\n"
    assert third.log() == "call 3 c\n"


def test_log_limit_is_for_each_execution(bench):
    source = "@mn.function()\ndef f(): print('x' * 2000)"
    run = bench.run(source, max_invocations=2, log_limit_bytes=1000)
    second = run.hand()
    assert run.gone() == 0
    for execution in (run, second):
        assert len(execution.log()) == 1000
        assert "was cut here" in execution.log("system")


def test_character_that_was_cut_does_not_reach_the_next_log(bench):
    source = """
    @mn.function()
    def f(data):
        os.write(1, bytes(data))
    """
    run = bench.run(source, list(b"a\xc3"), max_invocations=2)
    second = run.hand(list(b"\xa9b"))
    assert run.gone() == 0
    assert (run.log(), second.log()) == ("a\ufffd", "\ufffdb")


def test_values_begin_anew(bench):
    source = "@mn.function()\ndef f(n):\n    yield from range(n)"
    run = bench.run(source, 3, max_invocations=2)
    assert run.result() == 2
    second = run.hand(2, first_value_number=5, attempt=3)
    assert second.result() == 1
    assert sorted(second.record.values) == [5, 6]
    assert {value.attempt for value in second.record.values.values()} == {3}
    assert sorted(run.record.values) == [1, 2, 3]


def test_variables_of_a_task_are_for_it_alone(bench):
    source = "@mn.function()\ndef f(): return os.environ.get('TRACEPARENT')"
    run = bench.run(source, max_invocations=4, dotenv={"TRACEPARENT": "00-0"})
    assert run.result() == "00-0"
    assert run.hand().result() is None
    assert run.hand(variables={"TRACEPARENT": "00-1"}).result() == "00-1"
    assert run.hand().result() is None


def test_worker_context_is_that_of_the_invocation(bench):
    source = """
    from multinode.settings import worker_context

    @mn.function()
    def f(): return worker_context().invocation_id
    """
    run = bench.run(source, max_invocations=2)
    assert run.result() == run.record.assignment.invocation_id
    second = run.hand()
    assert second.result() == run.record.handed[2][0].invocation_id


def test_failed_invocation_leaves_its_worker_usable(bench):
    source = """
    @mn.function(no_retry_on=(KeyError,))
    def f(word):
        if word == "bad":
            raise KeyError(word)
        return [os.getpid(), word]
    """
    run = bench.run(source, "good", max_invocations=3)
    pid, _ = run.result()
    bad = run.hand("bad").end()
    assert (bad.outcome, bad.retryable, bad.error.type) == ("failed", False, "KeyError")
    assert run.hand("good").result() == [pid, "good"]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_second_invocation_can_be_cancelled(bench, kind):
    sleep = "await asyncio.sleep(60)" if kind == "async def" else "time.sleep(60)"
    source = f"""
    @mn.function()
    {kind} f(is_long):
        if is_long:
            try:
                mark()
                {sleep}
            except InvocationCancelledError:
                print("heard")
                raise
    """
    run = bench.run(source, False, max_invocations=0)
    run.result()
    second = run.hand(True)
    second.mark()
    second.cancel()
    assert second.end().outcome == "cancelled"
    assert second.log() == "heard\n"
    assert run.gone() == 0, "it is replaced"
    assert run.record.nexts[-1].number == 2


def test_second_invocation_has_its_own_timeout(bench):
    source = """
    @mn.function()
    def f(seconds):
        time.sleep(seconds)
    """
    run = bench.run(source, 1.2, max_invocations=0, timeout_s=2.0)
    run.result()
    assert run.hand(1.2).end().outcome == "succeeded"
    assert run.hand(30).end().outcome == "timed_out"
    assert run.gone() == 0


def test_watch_of_an_ended_execution_does_not_end_its_worker(bench):
    source = "@mn.function()\ndef f():\n    time.sleep(0.5)\n    return os.getpid()"
    run = bench.run(source, max_invocations=0)
    pid = run.result()
    for _ in range(3):
        later = run.hand()
        assert later.result() == pid
        assert later.record.watches == 1


def test_cancel_of_an_ended_execution_does_not_reach_the_next(bench):
    source = """
    @mn.function()
    def f(is_long):
        if is_long:
            mark()
            time.sleep(0.2)
        return os.getpid()
    """
    run = bench.run(source, False, max_invocations=0)
    pid = run.result()
    run.cancel()
    second = run.hand(True)
    second.mark()
    run.cancel()
    assert second.result() == pid


@pytest.mark.parametrize(
    ("body", "outcome", "message"),
    [
        ("os._exit(3)", "lost", "exited with code 3"),
        ("os.kill(os.getpid(), 9)", "lost", "killed by signal 9"),
        ("os.closerange(3, 99); time.sleep(9)", "failed", "closed file descriptors"),
    ],
)
def test_crash_of_a_later_invocation_is_its_own_end(bench, body, outcome, message):
    run = bench.run(
        f"@mn.function()\ndef f(is_bad):\n    if is_bad: {body}", False, max_invocations=0
    )
    assert run.end().outcome == "succeeded"
    end = run.hand(True).end()
    assert end.outcome == outcome
    assert message in end.error.message
    assert run.gone() == 0


def test_dismissed_worker_runs_its_exit_handlers(bench):
    source = """
    import atexit
    atexit.register(lambda: mark("bye"))

    @mn.function()
    def f(): pass
    """
    run = bench.run(source, max_invocations=0)
    run.result()
    run.dismiss()
    assert run.mark() == "bye"
    assert run.gone() == 0


# --- several tasks at once ---

SHORT = """
@mn.function()
def f(word, seconds=0):
    if word == "crash": os._exit(3)
    if word == "mark": mark()
    time.sleep(seconds)
    print(word)
    return [os.getpid(), word]
"""


def warmed(bench, **more):
    """A worker whose invocations have been short, and which asks for more than one by now."""
    run = bench.run(SHORT, "first", max_invocations=0, **more)
    run.result()
    for number in range(2, 100):  # a busy machine may take long for some
        run.wait_asking(number)
        if run.record.nexts[-1].most > 4:
            return run
        run.hand(number).result()
    raise AssertionError(run.record.nexts[-1])


def hand_together(bench, run, *calls):
    with bench.plane.changed:
        return [run.hand(*call) for call in calls]


def ends_told(run, execution):
    """How often its end was told."""
    reports = [*execution.record.reports]
    return sum(report.end is not None for report in reports)


def test_short_invocations_are_handed_together_and_each_is_told_once(bench):
    run = warmed(bench)
    pid, _ = run.result()
    asked, number = len(run.record.nexts), run.record.nexts[-1].number
    later = hand_together(bench, run, *((n,) for n in range(50)))
    assert [execution.result() for execution in later] == [[pid, n] for n in range(50)]
    assert [execution.log() for execution in later] == [f"{n}\n" for n in range(50)]
    assert {ends_told(run, execution) for execution in later} == {1}
    run.wait_asking(number + 50)
    assert len(run.record.nexts) - asked < 30
    assert max(request.most for request in run.record.nexts) <= 64


def test_long_invocations_are_asked_for_one_by_one(bench):
    run = bench.run(SHORT, "a", 0.1, max_invocations=0)
    for number in range(2, 4):
        assert run.hand("b", 0.1).result()
        run.wait_asking(number + 1)
    assert {request.most for request in run.record.nexts} == {1}


def test_no_more_are_asked_for_than_the_worker_may_serve(bench):
    run = bench.run(SHORT, "a", max_invocations=6)
    pid, _ = run.result()
    for n in range(3):
        run.hand(n).result()
    run.wait_asking(5)
    assert run.record.nexts[-1].most <= 2
    later = hand_together(bench, run, ("x",), ("y",))
    assert [execution.result() for execution in later] == [[pid, "x"], [pid, "y"]]
    assert run.gone() == 0


def test_held_tasks_are_given_back_when_one_takes_long(bench):
    run = warmed(bench)
    _, long, *held = hand_together(bench, run, ("a",), ("b", 1.5), ("c",), ("d",))
    for execution in held:
        assert execution.end().outcome == "unstarted"
    assert long.record.end is None
    assert long.result()[1] == "b"
    assert run.hand("e").result()[1] == "e"


def test_held_tasks_are_given_back_when_the_child_dies(bench):
    run = warmed(bench)
    first, crash, *held = hand_together(bench, run, ("a",), ("crash",), ("c",), ("d",))
    assert first.result()[1] == "a"
    assert (crash.end().outcome, crash.end().exit_code) == ("lost", 3)
    assert [execution.end().outcome for execution in held] == ["unstarted", "unstarted"]
    assert run.gone() == 0


@pytest.mark.parametrize("way", ["cancel", "term"])
def test_held_tasks_are_given_back_when_one_is_interrupted(bench, way):
    run = warmed(bench)
    marked, held = hand_together(bench, run, ("mark", 60), ("c",))
    marked.mark()
    if way == "cancel":
        marked.cancel()
    else:
        os.kill(run.pid, signal.SIGTERM)
    assert held.end().outcome == "unstarted"
    assert marked.end().outcome == ("cancelled" if way == "cancel" else "lost")
    assert run.gone() == 0


def test_end_is_told_while_the_next_one_runs(bench):
    run = warmed(bench)
    first, marked = hand_together(bench, run, ("a",), ("mark",))
    assert first.result()[1] == "a"
    assert marked.record.end is None
    marked.mark()
    assert marked.result()[1] == "mark"


def test_values_of_a_held_task_are_complete(bench):
    source = "@mn.function()\ndef f(n):\n    yield from range(n)"
    run = bench.run(source, 1, max_invocations=0)
    run.result()
    run.wait_asking(2)
    later = hand_together(bench, run, (100,), (200,), (300,))
    assert [execution.result() for execution in later] == [99, 199, 299]
    assert [len(execution.record.values) for execution in later] == [100, 200, 300]


# --- a worker that is to end ---


def test_sigterm_ends_a_worker_that_asks_and_its_end_is_told(bench):
    run = bench.run(PID, max_invocations=0)
    run.result()
    run.wait_asking(2)
    os.kill(run.pid, signal.SIGTERM)
    assert run.gone() == 0
    assert [request.number for request in run.record.nexts] == [2, 2], "asked once more"
    assert run.record.nexts[-1].wait_s == 0


def test_end_whose_answer_is_awaited_is_told_again_at_sigterm(bench):
    run = bench.run(PID, max_invocations=0)
    run.wait_claimed()
    run.result()
    run.wait_asking(2)
    run.record.end = None  # as if the request were still on its way
    os.kill(run.pid, signal.SIGTERM)
    assert run.gone() == 0
    assert run.record.end.outcome == "succeeded"


def test_sigterm_in_a_later_invocation_is_a_machine_that_goes_away(bench):
    source = "@mn.function()\ndef f(is_long):\n    if is_long: mark(); time.sleep(60)"
    run = bench.run(source, False, max_invocations=0)
    run.result()
    second = run.hand(True)
    second.mark()
    os.kill(run.pid, signal.SIGTERM)
    assert (second.end().outcome, second.end().retryable) == ("lost", True)
    assert run.gone() == 0


def test_child_that_dies_while_its_worker_asks_ends_the_worker(bench):
    run = bench.run(PID, max_invocations=0)
    pid, _ = run.result()
    run.wait_asking(2)
    os.kill(pid, signal.SIGKILL)
    assert run.gone() == 0


def test_task_that_comes_when_its_worker_is_to_end_is_given_back(bench):
    run = bench.run(PID, max_invocations=0)
    run.result()
    run.wait_asking(2)
    with bench.plane.changed:  # handed, but its answer comes after the signal
        os.kill(run.pid, signal.SIGSTOP)
        os.kill(run.pid, signal.SIGTERM)
        second = run.hand("b")
    bench.plane.wait_for(lambda: run.record.handed)
    os.kill(run.pid, signal.SIGCONT)
    assert run.gone() == 0
    assert second.record.end.outcome == "unstarted"
    assert second.log() == ""


def test_refused_worker_gives_up(bench):
    run = bench.run(PID, max_invocations=0)
    run.result()
    run.wait_asking(2)
    bench.plane.refuse(run.id)
    assert run.gone() == 0


def test_lost_answer_is_asked_for_again(bench):
    run = bench.run(PID, max_invocations=0)
    pid, _ = run.result()
    run.wait_asking(2)
    bench.plane.go_away()
    second = run.hand("b")
    bench.plane.come_back()
    assert second.result() == [pid, 2, "b"]
    assert run.hand("c").result() == [pid, 3, "c"]


def test_worker_outlives_a_control_plane_that_is_away_at_an_end(bench):
    source = "@mn.function()\ndef f():\n    mark()\n    return os.getpid()"
    run = bench.run(source, max_invocations=0)
    pid = None
    bench.plane.wait_for(lambda: run.record.claims)
    bench.plane.go_away()
    run.mark()
    bench.plane.come_back()
    pid = run.result()
    second = run.hand()
    second.mark()
    assert second.result() == pid


def test_ends_that_are_too_large_for_one_request_go_in_several():
    assignment = wire.Assignment("t", "invocation", "p", "v", "b", {}, max_invocations=0)
    serving = Serving(assignment)
    serving.take([wire.Task(number, f"exe-{number}", "inv") for number in range(1, 41)])
    result = "\u00e9" * limits.MAX_CHARACTERS
    for number in range(1, 41):
        serving.next_held()
        end = wire.ExecutionEnd("succeeded", result=result)
        serving.keep_end(wire.Report(f"exe-{number}", end=end), 0.001)
    told, waits = [], []
    while not waits or waits[-1] == 0:
        request = serving.request(is_idle=True)
        assert len(wire.dumps(request)) < 32 * 1024 * 1024
        told += [report.execution_id for report in request.reports or []]
        waits.append(request.wait_s)
    assert told == [f"exe-{number}" for number in range(1, 41)]
    assert len(waits) > 2
