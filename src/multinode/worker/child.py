"""The child: imports ``main.py``, runs the function in its main thread, once or several times, says over the channel what comes of it.

It talks to its supervisor only. Nothing here may take for granted that the user's code leaves descriptors, signal handlers or the
module table alone; what it must not touch is checked where it is used.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from time import monotonic

from .. import wire
from ..records import Record
from . import frames, processes
from .channel import Channel
from .interrupts import Interrupts
from .launch import INTERPRETER_PREFIXES
from .task import Task, flush

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import NoReturn, Optional

    from ..function import Function
    from ..settings import WorkerContext
    from .restoring import Surroundings


class Child(Record):
    """A child as its supervisor holds it: the channel, and descriptors to write orders to and read output from."""

    pid: int
    channel: socket.socket
    orders: int
    stdout: int
    stderr: int


def start() -> Child:
    """Forks a child that waits for its assignment. Only from a process with one thread."""
    channel, childs_channel = socket.socketpair()
    childs_orders, orders = os.pipe()
    stdout, childs_stdout = os.pipe()
    stderr, childs_stderr = os.pipe()
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _settle_in(supervisor, childs_stdout, childs_stderr)
            processes.close_all_but((childs_channel.fileno(), childs_orders))
            _serve(childs_channel, childs_orders)
        except EOFError:  # the supervisor has no work, or is gone
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    childs_channel.close()
    for fd in (childs_orders, childs_stdout, childs_stderr):
        os.close(fd)
    return Child(pid, channel, orders, stdout, stderr)


def _settle_in(supervisor: int, stdout: int, stderr: int) -> None:
    """Makes the forked process one of its own: session, signals, standard streams."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    processes.die_with_parent(supervisor)
    processes.go_first_when_memory_ends()
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(source, target)
    _open_standard_streams()


def _open_standard_streams() -> None:
    """Makes ``sys.stdin``, ``stdout`` and ``stderr`` anew: UTF-8, each line written at once, every text printable."""
    import faulthandler
    import io

    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115 - for this process's life
    streams = [
        io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(fd, "w", closefd=False)),
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
            write_through=True,
        )
        for fd in (1, 2)
    ]
    sys.stdout = sys.__stdout__ = streams[0]  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = streams[1]  # type: ignore[misc]
    faulthandler.enable(2)  # a segmentation fault says in the log where it came from


def _serve(connection: socket.socket, order_fd: int) -> NoReturn:
    """The child's life, from its assignment to its end."""
    _import_what_is_needed()
    frame = frames.receive(connection)
    channel = Channel(connection)
    assignment = wire.from_plain(wire.Assignment, frame["assignment"])
    if _needs_new_interpreter(assignment):
        _become_new_interpreter(channel, order_fd, assignment)
    _forget_in_forks(connection.fileno(), order_fd)
    interrupts = Interrupts(
        order_fd,
        invocation_id=assignment.invocation_id,
        timeout_s=assignment.timeout_s,
        on_delivery=lambda: channel.send("interrupted"),
    )
    interrupts.listen()
    place = _Place(frame["api_url"], frame["code_dir"], frame["work_dir"])
    main = _Main(channel, interrupts, assignment, place)
    if assignment.kind == "describe":
        main.describe()
    else:
        main.serve()
    _leave()


def _import_what_is_needed() -> None:
    """Imports the SDK before the user's folder is on ``sys.path``, and while the supervisor waits for its assignment."""
    from .. import app, codec  # noqa: F401
    from . import failures  # noqa: F401


def _needs_new_interpreter(assignment: wire.Assignment) -> bool:
    return any(
        name.startswith(INTERPRETER_PREFIXES) and os.environ.get(name) != value
        for name, value in assignment.dotenv.items()
    )


def _become_new_interpreter(
    channel: Channel, order_fd: int, assignment: wire.Assignment
) -> NoReturn:
    """Starts Python again in this process, in the environment's own settings; it asks for its assignment again."""
    channel.send("again")
    fds = (channel.fileno(), order_fd)
    for fd in fds:
        os.set_inheritable(fd, True)
    command = [sys.executable, "-m", "multinode.worker.child", *map(str, fds)]
    os.execve(sys.executable, command, {**os.environ, **assignment.dotenv})


def _forget_in_forks(*fds: int) -> None:
    """Closes the channel in forks that user code makes, so that only this process holds it."""

    def close() -> None:
        for fd in fds:
            with suppress(OSError):
                os.close(fd)

    os.register_at_fork(after_in_child=close)


def _leave() -> NoReturn:
    """Ends this process without waiting for threads; the supervisor bounds what exit handlers may take."""
    import atexit

    with suppress(BaseException):
        atexit._run_exitfuncs()
    flush()
    os._exit(0)


class _Place(Record):
    """Where the control plane, the code and the working folder are."""

    api_url: str
    code_dir: str
    work_dir: str


class _Main:
    """``main.py`` of one assignment: it is imported, and described, or its function serves one invocation after another."""

    def __init__(
        self,
        channel: Channel,
        interrupts: Interrupts,
        assignment: wire.Assignment,
        place: _Place,
    ) -> None:
        self._channel = channel
        self._interrupts = interrupts
        self._assignment = assignment
        self._place = place
        self._peak_memory = processes.PeakMemory()
        self._surroundings: Optional[Surroundings] = None
        """What is restored between two invocations; None where there is but one."""

    def describe(self) -> None:
        """Imports ``main.py`` and says what functions it has."""
        from ..app import find_app
        from .failures import import_error

        try:
            module = self._import()
            described = [function.describe() for function in find_app(module).functions.values()]
            answer = wire.Described(functions=described)
        except BaseException as error:
            answer = wire.Described(error=import_error(error, self._place.code_dir))
        flush()
        self._channel.send("described", described=wire.to_plain(answer))

    def serve(self) -> None:
        """Imports ``main.py``, then runs what it is told to, until that was the last or the process is no longer as it was."""
        from .failures import function_error

        began = monotonic()
        try:
            function = self._find_function(self._import())
        except BaseException as error:
            flush()
            told = function_error(error, self._place.code_dir)
            self._channel.send("unready", error=wire.to_plain(told))
            return
        self._channel.send("ready", import_ms=round((monotonic() - began) * 1000, 3))
        if self._assignment.max_invocations != 1:
            from .restoring import Surroundings

            self._surroundings = Surroundings(self._place.work_dir)
        while self._serve_next(function):
            pass

    def _serve_next(self, function: Function) -> bool:
        """Waits for work and does it; whether there may be more."""
        frame = self._channel.receive()
        if frame["kind"] == "leave":
            return False
        number, input_text = int(frame["number"]), self._assignment.input
        self._interrupts.begin(number)
        if frame["task"] is not None:
            input_text = self._enter(wire.from_plain(wire.Task, frame["task"]))
        task = Task(
            self._channel, self._interrupts, self._peak_memory, function, self._place.code_dir
        )
        if self._surroundings is None:
            task.perform(input_text)
            return False
        from contextvars import copy_context

        copy_context().run(task.perform, input_text)
        is_last = number == self._assignment.max_invocations
        return task.has_ended and not is_last and self._restore(self._surroundings)

    def _enter(self, task: wire.Task) -> str:
        """Makes this process one of ``task``; returns its input."""
        from ..settings import set_worker_context

        self._interrupts.invocation_id = task.invocation_id
        if task.number > 1:
            self._peak_memory.begin()
        os.environ.update(task.variables or {})
        set_worker_context(self._context(task.invocation_id))
        return task.input

    def _restore(self, surroundings: Surroundings) -> bool:
        """Puts back what the invocation has changed; says, and returns, whether that was possible."""
        from .strays import NotRestored

        unclean = ""
        flush()
        try:
            surroundings.restore()
        except NotRestored as error:
            unclean = str(error)
        except BaseException as error:  # also what a signal handler of the user's raises
            unclean = f"it cannot be put back as it was: {type(error).__name__}: {error}"
        self._channel.send("restored", unclean=unclean)
        return not unclean

    def _import(self) -> ModuleType:
        from importlib import import_module

        self._enter_environment()
        return import_module("main")

    def _enter_environment(self) -> None:
        from types import ModuleType

        from ..settings import set_worker_context

        assignment = self._assignment
        os.environ.update(assignment.dotenv)
        if "TZ" in assignment.dotenv:
            import time

            time.tzset()
        os.chdir(self._place.work_dir)
        if getattr(sys.flags, "safe_path", False):
            sys.path.insert(0, self._place.code_dir)
        else:  # in place of the folder in which the worker was started
            sys.path[0] = self._place.code_dir
        sys.argv = [os.path.join(self._place.code_dir, "main.py")]  # noqa: PTH118 - text
        sys.modules["__main__"] = ModuleType("__main__")  # what multiprocessing would import again
        # The describe, of which there is one before all others, leaves the bytecode for them.
        sys.dont_write_bytecode = assignment.kind != "describe"
        set_worker_context(self._context(assignment.invocation_id))

    def _context(self, invocation_id: str) -> WorkerContext:
        from ..settings import WorkerContext

        assignment = self._assignment
        return WorkerContext(
            api_url=self._place.api_url,
            token=assignment.token,
            project=assignment.project,
            version_id=assignment.version_id,
            invocation_id=invocation_id,
        )

    def _find_function(self, module: ModuleType) -> Function:
        from ..app import find_app
        from ..errors import FunctionNotFound

        functions = find_app(module).functions
        if self._assignment.function not in functions:
            message = f"main.py has no function {self._assignment.function!r}."
            raise FunctionNotFound(message, f"It has: {', '.join(sorted(functions))}.")
        return functions[self._assignment.function]


def _main() -> NoReturn:
    """Entry of a child that became a new interpreter: the descriptors of channel and orders are its arguments."""
    channel_fd, order_fd = map(int, sys.argv[1:])
    for fd in (channel_fd, order_fd):
        os.set_inheritable(fd, False)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    _open_standard_streams()
    try:
        _serve(socket.socket(fileno=channel_fd), order_fd)
    except EOFError:
        os._exit(0)


if __name__ == "__main__":
    _main()
