"""The supervisor: one loop over the child's channel, its output, signals, timers and what the threads of ``reports`` learn.

It decides how the execution ended (``endings``), and leaves nothing of it behind. User code cannot starve it, crash it or fake
its death. Whatever happens, it ends when the child is dead and the end is accepted, refused, or was not heard for a day.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
from time import monotonic

from .. import wire
from . import frames, processes
from .ear import Ear
from .endings import (
    Death,
    Interrupt,
    end_before_start,
    end_of_death,
    end_of_frame,
    end_of_import,
)
from .execution import Execution, first_task, log_of
from .interrupts import CANCELLED, PREEMPTED, TIMED_OUT, order_for
from .launch import Launch
from .output import Log, Output
from .reports import Answered, Assigned, Claimed, Ordered, Sent, Watch
from .serving import Serving
from .strays import NotRestored, kill_children

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Optional, Set

    from .folders import Folders
    from .prepared import Prepared
    from .reports import Event

LEAVE_S = 5.0
"""How long the child may take to exit once it has told its end: exit handlers, threads."""
PREEMPTION_GRACE_S = 110.0
"""A machine that is taken away gives two minutes from SIGTERM to SIGKILL (Fargate:
https://docs.aws.amazon.com/AmazonECS/latest/developerguide/fargate-capacity-providers.html, 2026-11-24); the rest is for reporting."""
CLAIM_PATIENCE_S = 10.0
"""How long an answer to the claim is waited for after SIGTERM."""
WATCH_AFTER_S = 0.02
"""A function that ends sooner costs no watch."""
LOST_CHANNEL_S = 1.0
"""How long a child may live on after its end of the channel was closed."""
RESTORE_S = 3.0
"""How long the child may take to put back what an invocation has changed: its end waits for that."""
END_PATIENCE_S = 0.02
"""How long an end may wait for those of the tasks that are held, to be told with them."""
HOLD_S = 0.5
"""How long a task may be held while another runs; then it is given back."""
LAST_QUESTION_S = 2.0
"""How long a worker that is to end, and has told all that it had to, waits for who might have handed it a task meanwhile."""


def say(launch: Launch, text: str) -> None:
    """One line on stderr, which is the control plane's log or the container's."""
    try:
        sys.stderr.write(f"multinode worker {launch.worker_id}: {text}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return


class Supervisor:
    """One worker's life.

    Phases: *starting* (exchange, import), *claiming*, *running*, *restoring* (an end is known, and the worker may serve
    another), *asking* (for that one), *ended* (the last end is known).
    """

    def __init__(self, launch: Launch, prepared: Prepared, folders: Folders) -> None:
        self._launch = launch
        self._cgroup = prepared.cgroup
        self._child = prepared.child
        self._signals = prepared.signals
        self._folders = folders
        self._mailbox = prepared.mailbox
        self._reports = prepared.reports
        self._reports.begin(launch, bundle_dir=folders.bundle_dir)
        self._log = Log(launch.log_file)
        self._output = Output(self._child.stdout, self._child.stderr, self._log)
        self._selector = selectors.DefaultSelector()
        self._ear = Ear(self._selector, self._child.channel, self._on_frame, self._on_channel_lost)
        self._timers: Dict[str, float] = {}

        self._phase = "starting"
        self._assigned: Optional[Assigned] = None
        self._execution: Optional[Execution] = None
        """The one at hand; the last one where none is."""
        self._serving: Optional[Serving] = None
        self._watch: Optional[Watch] = None
        self._own_children: Set[int] = set()
        """The child, and what main.py has left to this process when it was imported."""
        self._request: Optional[wire.NextRequest] = None
        """What it is asking with; None where it is not."""
        self._death: Optional[Death] = None
        self._was_killed_by_us = False
        self._is_accepted = False
        self._is_given_up = False
        self._status = 0

    def run(self) -> int:
        """Goes on until the child is dead and nothing is left to say; the exit status."""
        self._limit()  # while the code is exchanged, before the child has work
        self._selector.register(self._signals.wake_fd, selectors.EVENT_READ, self._signals.hush)
        self._ear.open()
        for fd in self._output.fds:
            self._selector.register(fd, selectors.EVENT_READ, self._pump(fd))
        while not self._is_over():
            self._tick()
        self._output.drain()
        self._log.end()
        return self._status

    def _limit(self) -> None:
        """Limits the child, and begins to count what the kernel kills for lack of memory."""
        cgroup, launch = self._cgroup, self._launch
        if launch.cgroups and launch.cpu and launch.memory_mib:
            try:
                if cgroup is None:
                    self._log.note("This worker has no cgroup: its cpu and memory are not limited.")
                else:
                    cgroup.limit(launch.cpu, launch.memory_mib)
            except OSError as error:
                self._log.note(f"Its cpu and memory could not be limited: {error}")
        self._oom = processes.OomCounter(events=None if cgroup is None else cgroup.oom_events())

    @property
    def is_childless(self) -> bool:
        """Whether the child is dead and reaped."""
        return self._death is not None

    def _is_over(self) -> bool:
        return self._death is not None and (self._is_accepted or self._is_given_up)

    def _tick(self) -> None:
        for key, _ in self._selector.select(self._time_left()):
            key.data()
        if self._signals.is_terminated:  # first: a task that has just come is not begun then
            self._signals.is_terminated = False
            self._on_term()
        for event in self._mailbox.take():
            self._on_event(event)
        self._reap()
        self._fire_timers()
        self._ear.pause(self._is_too_full())

    # --- what is readable ---

    def _pump(self, fd: int) -> Callable[[], None]:
        def pump() -> None:
            if fd in self._output.fds:
                self._output.pump(fd)
            if fd not in self._output.fds:
                self._selector.unregister(fd)

        return pump

    def _on_channel_lost(self, fault: str) -> None:
        """At the channel's end, or where the user's code wrote into it, the child is soon killed."""
        if fault:
            self._log.note(f"The function wrote into its worker's channel ({fault}).")
        if self._phase != "ended":
            self._timers["channel"] = monotonic() + LOST_CHANNEL_S

    def _is_too_full(self) -> bool:
        """Whether the generator has to wait while much is unsent, unless it has to be reached by an interrupt."""
        interrupt = None if self._execution is None else self._execution.interrupt
        is_reached = interrupt is None or interrupt.is_delivered
        return self._reports.is_full and is_reached

    # --- what the child says ---

    def _on_frame(self, frame: frames.Frame) -> None:
        kind = frame["kind"]
        if kind == "again":
            self._assign()
        elif kind == "described":
            self._describe(wire.from_plain(wire.Described, frame["described"]))
        elif kind == "unready" and self._phase == "starting":
            self._finish_unready(wire.from_plain(wire.FunctionError, frame["error"]))
        elif kind == "ready" and self._phase == "starting":
            self._on_ready(float(frame["import_ms"]))
        elif self._execution is not None:
            self._on_word(kind, frame, self._execution)

    def _on_ready(self, import_ms: float) -> None:
        if self._execution is not None:
            self._phase = "claiming"
            self._reports.claim(wire.Claim(self._execution.id, import_ms))
        else:  # started ahead
            self._phase = "asking"
            self._ask(is_idle=True, import_ms=import_ms)
        if self._assignment().max_invocations != 1:
            self._own_children = {self._child.pid, *processes.children()}

    def _on_word(self, kind: str, frame: frames.Frame, execution: Execution) -> None:
        """A message of the invocation at hand."""
        if kind == "interrupted" and execution.interrupt is not None:
            execution.interrupt = execution.interrupt.replace(is_delivered=True)
            self._timers.pop("ring", None)
        elif kind == "value" and self._phase == "running":
            self._reports.add_value(execution.id, execution.value(str(frame["value"])))
        elif kind == "end" and self._phase == "running":
            end = end_of_frame(frame, execution.interrupt, execution.run_ms())
            self._on_end(end, execution)
        elif kind == "restored" and self._phase == "restoring":
            self._on_restored(str(frame["unclean"]), execution)

    # --- what the control plane says ---

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Assigned):
            self._on_assigned(event)
        elif isinstance(event, Claimed):
            self._on_claimed(event.order)
        elif isinstance(event, Ordered):
            if self._phase == "running" and self._is_at_hand(event.execution_id):
                self._interrupt_child(CANCELLED, self._assignment().grace_s)
        elif isinstance(event, Answered):
            self._on_answered(event)
        elif isinstance(event, Sent):
            self._is_accepted = self._is_accepted or event.is_end
        elif event.watched is None or (
            self._phase == "running" and self._is_at_hand(event.watched)
        ):  # where an end was accepted, its watch is refused as a matter of course
            self._give_up(event.reason)

    def _on_assigned(self, assigned: Assigned) -> None:
        if self._is_given_up:
            return
        assignment = assigned.assignment
        self._assigned = assigned
        self._serving = Serving(assignment)
        self._log.limit(assignment.log_limit_bytes)
        if assignment.execution_id:
            self._execution = Execution(first_task(assignment))
        self._folders.make_work_dir(assigned.code_dir)
        if assignment.kind == "describe":
            self._timers["timeout"] = monotonic() + assignment.timeout_s
        self._assign()
        if self._death is not None:  # it was never told what to do: none of the user's doing
            self._give_up("its child died before it had work")

    def _assign(self) -> None:
        assert self._assigned is not None, "only an assigned child asks again"
        self._tell(
            "assignment",
            assignment=wire.to_plain(self._assigned.assignment),
            api_url=self._launch.api_url,
            code_dir=self._assigned.code_dir,
            work_dir=self._folders.work_dir,
        )

    def _on_claimed(self, order: Optional[str]) -> None:
        if self._phase != "claiming":
            return
        self._timers.pop("patience", None)
        execution = self._at_hand()
        if execution.interrupt is not None or order == "cancel":
            interrupt = execution.interrupt
            self._finish(end_before_start(CANCELLED if interrupt is None else interrupt.order))
            self._kill()
        elif self._death is not None:
            self._phase = "running"
            self._finish_dead(self._death)
        else:
            self._run(execution, None)

    # --- one invocation after another ---

    def _run(self, execution: Execution, task: Optional[wire.Task]) -> None:
        """Lets the child run the invocation at hand."""
        now = execution.begin()
        self._phase = "running"
        self._timers["timeout"] = now + self._assignment().timeout_s
        self._timers["watch"] = now + WATCH_AFTER_S
        self._tell("run", number=execution.number, task=wire.to_plain(task))

    def _on_end(self, end: wire.ExecutionEnd, execution: Execution) -> None:
        """The child has told an end. Unless it was interrupted it may serve another when it is as it was."""
        execution.end = end
        if execution.interrupt is not None or not self._served().may_go_on:
            self._finish(end)
            return
        self._phase = "restoring"
        self._forget_timers()
        self._timers["restore"] = monotonic() + RESTORE_S

    def _on_restored(self, unclean: str, execution: Execution) -> None:
        self._timers.pop("restore", None)
        try:
            kill_children(self._own_children)
        except NotRestored as error:
            unclean = unclean or str(error)
        self._output.drain()
        if unclean:
            self._log.note(f"Its worker is replaced, not used again: {unclean}.")
        if unclean or not self._served().may_go_on:
            self._finish(self._ended())
            return
        self._output.turn_to(self._log)
        self._log.end()
        self._served().keep_end(execution.last_report(), execution.ran_s())
        self._timers.setdefault("ends", monotonic() + END_PATIENCE_S)
        self._go_on()

    def _go_on(self) -> None:
        """Begins with the next task that is held, or asks for one."""
        if self._served().has_held:
            self._begin(self._served().next_held())
            return
        self._phase = "asking"
        if self._request is None:
            self._ask(is_idle=True)

    def _begin(self, task: wire.Task) -> None:
        self._oom.begin()
        self._log = log_of(task, self._launch)
        self._log.limit(self._assignment().log_limit_bytes)
        self._output.turn_to(self._log)
        self._execution = Execution(task)
        self._run(self._execution, task)
        if self._served().has_held:
            self._timers["hold"] = monotonic() + HOLD_S

    def _ask(self, *, is_idle: bool, import_ms: float = 0.0) -> None:
        self._timers.pop("ends", None)
        self._request = self._served().request(is_idle=is_idle, import_ms=import_ms)
        self._reports.ask(self._request)

    def _on_answered(self, answered: Answered) -> None:
        """The ends that it asked with are accepted; there may be tasks, and there may be no more of them."""
        self._request = None
        served = self._served()
        served.take(self._reports.take_tasks())
        if answered.leave:
            served.stop()
        if self._phase == "asking":
            if served.may_go_on:
                self._go_on()
            else:
                self._finish_served()
        elif served.has_held and self._phase == "running":
            self._timers.setdefault("hold", monotonic() + HOLD_S)

    def _tell_ends(self) -> None:
        """Tells ends that have waited while another task runs."""
        if self._request is not None:  # with later ones
            self._timers["ends"] = monotonic() + END_PATIENCE_S
        else:
            self._ask(is_idle=False)

    def _finish_served(self) -> None:
        """There is nothing more to run; what is not told yet are the last words."""
        self._phase = "ended"
        self._timers.pop("ends", None)
        self._reports.finish(self._served().take_ends())
        self._let_go()

    def _leave(self) -> None:
        """Ends a worker that asks for a task. What it was asking with is in doubt, and is asked and told once more."""
        self._phase = "ended"
        assert self._request is not None, "it asks"
        ends = self._served().take_ends()
        self._reports.leave(self._request.replace(wait_s=0.0), ends)
        patience_s = PREEMPTION_GRACE_S if ends or self._request.reports else LAST_QUESTION_S
        self._timers["patience"] = monotonic() + patience_s
        self._let_go()

    def _give_back(self) -> None:
        """What is held another worker may begin sooner."""
        self._timers.pop("hold", None)
        given = self._served().give_back()
        if given:
            self._reports.add(given)

    def _let_go(self) -> None:
        """The child has nothing more to do: it runs its exit handlers and exits, or is killed."""
        if self._death is None:
            self._timers["leave"] = monotonic() + LEAVE_S
            if self._assignment().max_invocations != 1 or not self._assignment().execution_id:
                self._tell("leave")

    # --- interrupts and ends ---

    def _on_term(self) -> None:
        """SIGTERM from outside: the machine, or the runner, wants this worker to end."""
        if self._assigned is not None:
            self._served().stop()
            self._give_back()
        if self._phase == "starting":
            self._give_up("terminated before its claim")
        elif self._phase == "claiming":
            self._at_hand().interrupt = Interrupt(PREEMPTED, 0.0, is_delivered=False)
            self._timers["patience"] = monotonic() + CLAIM_PATIENCE_S
        elif self._phase == "running":
            grace_s = min(self._assignment().grace_s, PREEMPTION_GRACE_S)
            self._interrupt_child(PREEMPTED, grace_s)
            if "kill" in self._timers:  # else it is killed already
                self._timers["kill"] = min(self._timers["kill"], monotonic() + grace_s)
        elif self._phase == "asking":
            self._leave()
        elif self._phase == "ended":
            self._timers["patience"] = monotonic() + PREEMPTION_GRACE_S

    def _interrupt_child(self, order: bytes, grace_s: float) -> None:
        """Rings an interrupt into the child; the first one stays. Its worker is not used again."""
        execution = self._at_hand()
        if execution.interrupt is not None:
            return
        execution.interrupt = Interrupt(order, grace_s, is_delivered=False)
        self._give_back()
        self._timers.pop("timeout", None)
        self._timers["kill"] = monotonic() + grace_s
        try:
            os.write(self._child.orders, order_for(execution.number, order))
        except OSError:  # the user's code has closed the other end
            return
        self._ring()

    def _ring(self) -> None:
        """Rings until the child says that it heard: a ring may fall between two moments of the user's code."""
        if self._death is None:
            os.kill(self._child.pid, signal.SIGUSR2)
            self._timers["ring"] = self._at_hand().next_ring()

    def _finish(self, end: wire.ExecutionEnd) -> None:
        """Fixes the end of the last execution and has it sent. The log is complete before."""
        self._phase = "ended"
        self._forget_timers()
        self._timers.pop("ends", None)
        self._output.drain()
        execution = self._at_hand()
        execution.end = end
        served = self._served()
        self._reports.finish([*served.take_ends(), execution.last_report(), *served.give_back()])
        self._let_go()

    def _finish_unready(self, error: wire.FunctionError) -> None:
        """``main.py`` could not be imported: the end of the execution, or of a worker that was started ahead."""
        if self._execution is not None:
            self._finish(end_of_import(error))
            return
        self._output.drain()
        self._status = 1
        self._give_up(error.message)

    def _forget_timers(self) -> None:
        """Those of an execution that has ended."""
        for name in ("timeout", "ring", "kill", "watch", "channel", "hold"):
            self._timers.pop(name, None)

    def _describe(self, described: wire.Described) -> None:
        if self._phase == "starting":
            self._phase = "ended"
            self._timers.pop("timeout", None)
            self._timers["leave"] = monotonic() + LEAVE_S
            self._reports.describe(described)

    def _give_up(self, reason: str) -> None:
        say(self._launch, f"gave up: {reason}")
        self._phase = "ended"
        self._is_given_up = True
        self._kill()

    def _kill(self) -> None:
        if self._death is None:
            self._was_killed_by_us = True
            processes.kill_group(self._child.pid)

    # --- the child's death ---

    def _reap(self) -> None:
        """Takes notice of the child's death, and reaps orphans that were left to this process."""
        while True:
            reaped = processes.reap_one(self._child.pid)
            if reaped is None:
                return
            if reaped.pid == self._child.pid:
                self._on_death(reaped)

    def _on_death(self, reaped: processes.Reaped) -> None:
        was_out_of_memory = self._oom.has_risen()
        peak_bytes = reaped.peak_memory_bytes
        if was_out_of_memory and self._cgroup is not None:
            # What was counted against the limit: of all its processes, without what is shared with the starter.
            peak_bytes = self._cgroup.peak_bytes() or peak_bytes
        self._death = death = Death(
            exit_code=reaped.exit_code,
            signal=reaped.signal,
            peak_memory_bytes=peak_bytes,
            was_killed_by_us=self._was_killed_by_us,
            was_out_of_memory=was_out_of_memory,
        )
        self._ear.close()  # after what it said before it died
        if self._phase in ("starting", "running"):
            self._finish_dead(death)
        elif self._phase == "restoring":
            self._finish(self._ended())
        elif self._phase == "asking":
            say(
                self._launch,
                f"its child {death.describe(self._memory_mib())} between two executions",
            )
            self._leave()
        processes.kill_remaining_children()

    def _finish_dead(self, death: Death) -> None:
        """The end of a child that told none."""
        if self._assigned is None:
            self._output.drain()
            self._give_up("its child died before it had work")
            return
        words = death.describe(self._memory_mib())
        failed = f"main.py could not be imported: {words}"
        if self._assignment().kind == "describe":
            self._output.drain()
            hint = "Something in it, or in what it imports, ends or crashes the interpreter: remove that."
            error = wire.ErrorBody("import_failed", f"{failed}.", hint)
            self._describe(wire.Described(error=error))
        elif self._phase == "starting":
            self._finish_unready(wire.FunctionError(failed))
        else:
            execution = self._at_hand()
            self._finish(
                end_of_death(death, execution.interrupt, self._memory_mib(), execution.run_ms())
            )

    # --- time ---

    def _time_left(self) -> Optional[float]:
        if not self._timers:
            return None
        return max(0.0, min(self._timers.values()) - monotonic())

    def _fire_timers(self) -> None:
        now = monotonic()
        for name in [name for name, due in self._timers.items() if due <= now]:
            if self._timers.pop(name, None) is not None:
                self._on_timer(name)

    def _on_timer(self, name: str) -> None:
        if name == "timeout":
            self._on_timeout()
        elif name == "ring":
            self._ring()
        elif name == "watch":
            self._watch_it()
        elif name == "hold":
            self._give_back()
        elif name == "ends":
            self._tell_ends()
        elif name == "restore":
            self._log.note("Its worker is replaced, not used again: it has not come to rest.")
            self._finish(self._ended())
        elif name == "patience":
            self._give_up("terminated")
        elif name == "kill":
            self._log.note("The function had not ended when its time to clean up was over: killed.")
            self._kill()
        else:  # leave, channel
            self._kill()

    def _on_timeout(self) -> None:
        assignment = self._assignment()
        if assignment.kind == "describe":
            message = f"main.py could not be imported within {assignment.timeout_s:g} s."
            hint = "What takes long belongs into a function."
            error = wire.ErrorBody("import_failed", message, hint)
            self._describe(wire.Described(error=error))
            self._kill()
        else:
            self._interrupt_child(TIMED_OUT, assignment.grace_s)

    # --- small things ---

    def _assignment(self) -> wire.Assignment:
        assert self._assigned is not None, "asked for before there was one"
        return self._assigned.assignment

    def _memory_mib(self) -> int:
        """Its limit, which may be more than its function's setting."""
        return self._launch.memory_mib or self._assignment().memory_mib

    def _served(self) -> Serving:
        assert self._serving is not None, "asked for before there was an assignment"
        return self._serving

    def _at_hand(self) -> Execution:
        assert self._execution is not None, "asked for before there was one"
        return self._execution

    def _is_at_hand(self, execution_id: str) -> bool:
        return self._execution is not None and self._execution.id == execution_id

    def _ended(self) -> wire.ExecutionEnd:
        end = self._at_hand().end
        assert end is not None, "it has ended"
        return end

    def _watch_it(self) -> None:
        if self._watch is None:
            self._watch = Watch(self._launch.api_url, self._assignment().token, self._mailbox)
        self._watch.turn_to(self._at_hand().id)

    def _tell(self, kind: str, **fields: object) -> None:
        try:
            frames.send(self._child.channel, kind, **fields)
        except OSError:  # it is dead, which its end will tell
            return
