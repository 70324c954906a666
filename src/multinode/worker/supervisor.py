"""The supervisor: one loop over the child's channel, its output, signals, timers and what the threads of ``reports`` learn.

It decides how the execution ended (``endings``), and leaves nothing of it behind. User code cannot starve it, crash it or fake
its death. Whatever happens, it ends when the child is dead and the end is accepted, refused, or was not heard for a day.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
from time import monotonic

from .. import wire
from . import frames, processes
from .cgroup import Cgroup
from .child import Child
from .child import start as start_child
from .endings import (
    Death,
    Interrupt,
    end_before_start,
    end_of_death,
    end_of_frame,
    end_of_import,
)
from .folders import Folders, WorkerFile
from .interrupts import CANCELLED, PREEMPTED, TIMED_OUT
from .launch import Launch
from .output import Log, Output
from .reports import Assigned, Claimed, Mailbox, Ordered, Refused, Reports, Sent, Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, NoReturn, Optional, Sequence

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
FIRST_RING_PAUSE_S, LONGEST_RING_PAUSE_S = 0.02, 1.0

SWITCH_S = 0.0005
"""How long the thread that sends may have to wait for the loop to let go of the interpreter (Python's default: 5 ms)."""

_PIECE_BYTES = 256 * 1024


class Signals:
    """SIGTERM and SIGCHLD, as flags and as a descriptor that becomes readable."""

    def __init__(self) -> None:
        """Installs the handlers; do it first, so that no signal is lost."""
        self.wake_fd, self._bell = os.pipe()
        for fd in (self.wake_fd, self._bell):
            os.set_blocking(fd, False)
        self.is_terminated = False
        signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            signal.signal(ignored, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def mailbox(self) -> Mailbox:
        """A mailbox that wakes the same descriptor."""
        return Mailbox(self._bell)

    def hush(self) -> None:
        """Empties the descriptor."""
        try:
            while len(os.read(self.wake_fd, 4096)) == 4096:
                pass
        except BlockingIOError:
            return

    def _on_term(self, *_: object) -> None:
        self.is_terminated = True


class Prepared:
    """What a supervisor can have before it has its launch: its child, which waits, and its thread."""

    def __init__(self, signals: Signals, cgroups: Optional[Sequence[str]]) -> None:
        """Forks the child; only in a process with one thread."""
        self.signals = signals
        self.child = start_child()
        self.cgroup = _make_cgroup(cgroups, self.child)
        sys.setswitchinterval(SWITCH_S)
        self.mailbox = signals.mailbox()
        self.reports = Reports(self.mailbox)

    def discard(self) -> None:
        """Ends the child of a supervisor that is not needed."""
        processes.kill_group(self.child.pid)
        processes.kill_remaining_children()
        if self.cgroup is not None:
            self.cgroup.remove()


def supervise(launch: Launch, prepared: Prepared) -> NoReturn:
    """Lives one worker's life and exits: 0 after every end, 1 where it could not begin."""
    child, cgroup = prepared.child, prepared.cgroup
    worker_file: Optional[WorkerFile] = None
    folders: Optional[Folders] = None
    supervisor: Optional[Supervisor] = None
    status = 1
    try:
        if launch.worker_file is not None:
            cgroups = cgroup.folders if cgroup is not None else ()
            worker_file = WorkerFile(launch.worker_file, launch.worker_id, cgroups)
        folders = Folders(launch)
        supervisor = Supervisor(launch, prepared, folders)
        supervisor.run()
        status = 0
    except Exception as error:  # the outermost edge
        say(launch, f"{type(error).__name__}: {error}")
    finally:
        # Of a child that was reaped, the pid may be another's by now.
        if supervisor is None or not supervisor.is_childless:
            processes.kill_group(child.pid)
        if cgroup is not None:
            cgroup.kill()
        processes.kill_remaining_children()
        # Where it could not begin, its file stays for its starter to say so in it.
        for kept in (cgroup, folders, worker_file if status == 0 else None):
            if kept is not None:
                kept.remove()
        os._exit(status)


def _make_cgroup(parents: Optional[Sequence[str]], child: Child) -> Optional[Cgroup]:
    """A cgroup with the child in it; None where none is wanted or can be made."""
    if not parents:
        return None
    try:
        return Cgroup.make(parents, child.pid)
    except OSError:  # without limits is better than not at all; it is said in the log
        return None


def say(launch: Launch, text: str) -> None:
    """One line on stderr, which is the control plane's log or the container's."""
    try:
        sys.stderr.write(f"multinode worker {launch.worker_id}: {text}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return


class Supervisor:
    """One worker's life. Phases: *starting* (exchange, import), *claiming*, *running*, *ended* (its end is known)."""

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
        self._buffer = frames.FrameBuffer()
        self._selector = selectors.DefaultSelector()
        self._timers: Dict[str, float] = {}
        self._is_held = False
        """Whether the child's messages are left unread for now."""

        self._phase = "starting"
        self._assigned: Optional[Assigned] = None
        self._interrupt: Optional[Interrupt] = None
        self._ring_pause_s = FIRST_RING_PAUSE_S
        self._next_number = 1
        self._began = 0.0
        self._death: Optional[Death] = None
        self._was_killed_by_us = False
        self._is_accepted = False
        self._is_given_up = False

    def run(self) -> None:
        """Goes on until the child is dead and nothing is left to say."""
        self._limit()  # while the code is exchanged, before the child has work
        self._selector.register(self._signals.wake_fd, selectors.EVENT_READ, self._signals.hush)
        self._selector.register(self._child.channel, selectors.EVENT_READ, self._read_channel)
        for fd in self._output.fds:
            self._selector.register(fd, selectors.EVENT_READ, self._pump(fd))
        while not self._is_over():
            self._tick()
        self._output.drain()
        self._log.end()

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
        for event in self._mailbox.take():
            self._on_event(event)
        if self._signals.is_terminated:
            self._signals.is_terminated = False
            self._on_term()
        self._reap()
        self._fire_timers()
        self._hold_or_read()

    # --- what is readable ---

    def _pump(self, fd: int) -> Callable[[], None]:
        def pump() -> None:
            if fd in self._output.fds:
                self._output.pump(fd)
            if fd not in self._output.fds:
                self._selector.unregister(fd)

        return pump

    def _read_channel(self) -> None:
        """Takes what the child sent; at the channel's end, or where the user's code wrote into it, the child is soon killed."""
        if self._take_frames() is None:
            self._stop_reading()
            if self._phase != "ended":
                self._timers["channel"] = monotonic() + LOST_CHANNEL_S

    def _take_frames(self) -> Optional[int]:
        """How many bytes were there; None where no more will come."""
        try:
            data = self._child.channel.recv(_PIECE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            return None
        try:
            for frame in self._buffer.feed(data):
                self._on_frame(frame)
        except (frames.NotAFrame, LookupError, TypeError, ValueError) as error:
            self._log.note(f"The function wrote into its worker's channel ({error}).")
            return None
        return len(data) or None

    def _hold_or_read(self) -> None:
        """Makes the generator wait while too much is unsent, unless it has to be reached by an interrupt."""
        is_reached = self._interrupt is None or self._interrupt.is_delivered
        fd = self._child.channel.fileno()
        is_reading = fd in self._selector.get_map()
        if is_reading and self._reports.is_full and is_reached:
            self._selector.unregister(fd)
            self._is_held = True
        elif self._is_held and not (self._reports.is_full and is_reached):
            self._is_held = False
            self._selector.register(fd, selectors.EVENT_READ, self._read_channel)

    def _stop_reading(self) -> None:
        self._is_held = False
        if self._child.channel.fileno() in self._selector.get_map():
            self._selector.unregister(self._child.channel)

    # --- what the child says ---

    def _on_frame(self, frame: frames.Frame) -> None:
        kind = frame["kind"]
        if kind == "again":
            self._assign()
        elif kind == "described":
            self._describe(wire.from_plain(wire.Described, frame["described"]))
        elif kind == "unready" and self._phase == "starting":
            error = wire.from_plain(wire.FunctionError, frame["error"])
            self._finish(end_of_import(error))
        elif kind == "ready" and self._phase == "starting":
            self._phase = "claiming"
            self._reports.claim(wire.Claim(self._execution_id(), float(frame["import_ms"])))
        elif kind == "interrupted" and self._interrupt is not None:
            self._interrupt = self._interrupt.replace(is_delivered=True)
            self._timers.pop("ring", None)
        elif kind == "value" and self._phase == "running":
            self._add_value(str(frame["value"]))
        elif kind == "end" and self._phase == "running":
            self._finish(end_of_frame(frame, self._interrupt, self._run_ms()))

    def _add_value(self, text: str) -> None:
        attempt = self._assignment().attempt
        self._reports.add_value(wire.Value(self._next_number, text, attempt))
        self._next_number += 1

    # --- what the control plane says ---

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Assigned):
            self._on_assigned(event)
        elif isinstance(event, Claimed):
            self._on_claimed(event.order)
        elif isinstance(event, Ordered):
            if self._phase == "running":
                self._interrupt_child(CANCELLED, self._assignment().grace_s)
        elif isinstance(event, Sent):
            self._is_accepted = self._is_accepted or event.is_end
        elif isinstance(event, Refused) and not (event.is_watch and self._phase == "ended"):
            # Where its end was accepted, the watch is refused as a matter of course.
            self._give_up(event.reason)

    def _on_assigned(self, assigned: Assigned) -> None:
        if self._is_given_up:
            return
        assignment = assigned.assignment
        self._assigned = assigned
        self._next_number = assignment.first_value_number
        self._log.limit(assignment.log_limit_bytes)
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
        now = self._began = monotonic()
        self._phase = "running"
        if self._interrupt is not None or order == "cancel":
            before = CANCELLED if self._interrupt is None else self._interrupt.order
            self._finish(end_before_start(before))
            self._kill()
        elif self._death is not None:
            self._finish_dead(self._death)
        else:
            self._timers["timeout"] = now + self._assignment().timeout_s
            self._timers["watch"] = now + WATCH_AFTER_S
            self._tell("run")

    # --- interrupts and ends ---

    def _on_term(self) -> None:
        """SIGTERM from outside: the machine, or the runner, wants this worker to end."""
        if self._phase == "starting":
            self._give_up("terminated before its claim")
        elif self._phase == "claiming":
            self._interrupt = Interrupt(PREEMPTED, 0.0, is_delivered=False)
            self._timers["patience"] = monotonic() + CLAIM_PATIENCE_S
        elif self._phase == "running":
            grace_s = min(self._assignment().grace_s, PREEMPTION_GRACE_S)
            self._interrupt_child(PREEMPTED, grace_s)
            if "kill" in self._timers:  # else it is killed already
                self._timers["kill"] = min(self._timers["kill"], monotonic() + grace_s)
        else:
            self._timers["patience"] = monotonic() + PREEMPTION_GRACE_S

    def _interrupt_child(self, order: bytes, grace_s: float) -> None:
        """Rings an interrupt into the child; the first one stays."""
        if self._interrupt is not None:
            return
        self._interrupt = Interrupt(order, grace_s, is_delivered=False)
        self._timers.pop("timeout", None)
        self._timers["kill"] = monotonic() + grace_s
        try:
            os.write(self._child.orders, order)
        except OSError:  # the user's code has closed the other end
            return
        self._ring()

    def _ring(self) -> None:
        """Rings until the child says that it heard: a ring may fall between two moments of the user's code."""
        if self._death is None:
            os.kill(self._child.pid, signal.SIGUSR2)
            self._timers["ring"] = monotonic() + self._ring_pause_s
            self._ring_pause_s = min(2 * self._ring_pause_s, LONGEST_RING_PAUSE_S)

    def _finish(self, end: wire.ExecutionEnd) -> None:
        """Fixes the end and has it sent. The log is complete before."""
        self._phase = "ended"
        for name in ("timeout", "ring", "kill", "watch", "channel"):
            self._timers.pop(name, None)
        self._output.drain()
        self._reports.finish(end)
        if self._death is None:
            self._timers["leave"] = monotonic() + LEAVE_S

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
        while self._take_frames():  # what it said before it died
            pass
        self._stop_reading()
        if self._phase in ("starting", "running"):
            self._finish_dead(death)
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
            self._finish(end_of_import(wire.FunctionError(failed)))
        else:
            self._finish(end_of_death(death, self._interrupt, self._memory_mib(), self._run_ms()))

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
            Watch(self._launch.api_url, self._assignment(), self._mailbox).start()
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

    def _execution_id(self) -> str:
        return self._assignment().execution_id

    def _run_ms(self) -> float:
        return round((monotonic() - self._began) * 1000, 3)

    def _tell(self, kind: str, **fields: object) -> None:
        try:
            frames.send(self._child.channel, kind, **fields)
        except OSError:  # it is dead, which its end will tell
            return
