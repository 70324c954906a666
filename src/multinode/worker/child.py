"""The child: imports ``main.py``, runs the function in its main thread, says over the channel what comes of it.

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
from .interrupts import Interruptible, Interrupts, TaskCancellation, call, resume, throw
from .launch import INTERPRETER_PREFIXES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Callable, List, NoReturn, Optional, Tuple

    from ..function import Function

CHANNEL_LOST = 213
"""Exit code of a child whose end of the channel was closed by the user's code."""


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
    task = _Task(channel, interrupts, assignment, place)
    if assignment.kind == "describe":
        task.describe()
    else:
        task.run()
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
    _flush()
    os._exit(0)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed, or replaced by the user's code
            stream.flush()


class Channel:
    """The child's end of the channel. A fork that came here is ended; a descriptor that is no longer ours is not written to."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pid = os.getpid()
        self._identity = self._identify()

    def fileno(self) -> int:
        """The descriptor."""
        return self._connection.fileno()

    def send(self, kind: str, **fields: Any) -> None:
        """Sends a message of ``frames``; ends this process where that cannot be done."""
        self._check()
        try:
            frames.send(self._connection, kind, **fields)
        except OSError:
            os._exit(CHANNEL_LOST)

    def receive(self) -> frames.Frame:
        """The next message. Raises EOFError where the supervisor is gone."""
        self._check()
        return frames.receive(self._connection)

    def _check(self) -> None:
        if os.getpid() != self._pid:
            os._exit(0)
        try:
            is_ours = self._identify() == self._identity
        except OSError:
            is_ours = False
        if not is_ours:
            os._exit(CHANNEL_LOST)

    def _identify(self) -> Any:
        stat = os.fstat(self._connection.fileno())
        return stat.st_dev, stat.st_ino


class _Place(Record):
    """Where the control plane, the code and the working folder are."""

    api_url: str
    code_dir: str
    work_dir: str


class _Task:
    """One assignment: its ``main.py``, its function, what is said of them."""

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
        self._function: Optional[Function] = None
        self._has_ended = False

    # --- before the claim ---

    def describe(self) -> None:
        """Imports ``main.py`` and says what functions it has."""
        from ..app import find_app
        from .failures import import_error

        try:
            module = self._import_main()
            described = [function.describe() for function in find_app(module).functions.values()]
            answer = wire.Described(functions=described)
        except BaseException as error:
            answer = wire.Described(error=import_error(error, self._place.code_dir))
        _flush()
        self._channel.send("described", described=wire.to_plain(answer))

    def run(self) -> None:
        """Imports ``main.py``, waits for the claim, runs the function."""
        began = monotonic()
        try:
            self._function = self._find_function(self._import_main())
        except BaseException as error:
            _flush()
            self._channel.send("unready", error=wire.to_plain(self._describe_error(error)))
            return
        self._channel.send("ready", import_ms=round((monotonic() - began) * 1000, 3))
        self._channel.receive()
        self._perform(self._function)

    def _import_main(self) -> ModuleType:
        from importlib import import_module

        self._enter_environment()
        return import_module("main")

    def _enter_environment(self) -> None:
        from types import ModuleType

        from ..settings import WorkerContext, set_worker_context

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
        set_worker_context(
            WorkerContext(
                api_url=self._place.api_url,
                token=assignment.token,
                project=assignment.project,
                version_id=assignment.version_id,
                invocation_id=assignment.invocation_id,
            )
        )

    def _find_function(self, module: ModuleType) -> Function:
        from ..app import find_app
        from ..errors import FunctionNotFound

        functions = find_app(module).functions
        if self._assignment.function not in functions:
            message = f"main.py has no function {self._assignment.function!r}."
            raise FunctionNotFound(message, f"It has: {', '.join(sorted(functions))}.")
        return functions[self._assignment.function]

    # --- after the claim ---

    def _perform(self, function: Function) -> None:
        from types import AsyncGeneratorType, CoroutineType, GeneratorType

        from ..codec import decode

        try:
            args, kwargs = decode(self._assignment.input)
            self._raise_pending()
            returned = call(function.func, args, kwargs)
            if isinstance(returned, (CoroutineType, AsyncGeneratorType)):
                self._run_loop(returned)
            elif isinstance(returned, GeneratorType):
                self._end(self._drain(returned))
            else:
                self._end(_encode(returned))
        except BaseException as error:
            self._fail(error)

    def _raise_pending(self) -> None:
        interrupt = self._interrupts.take()
        if interrupt is not None:
            raise interrupt

    def _drain(self, generator: Any) -> str:
        """Publishes each value of a generator; returns the text of the last one."""
        last, refused = "null", None
        while True:
            error = self._interrupts.take() or refused
            try:
                value = resume(generator) if error is None else throw(generator, error)
            except StopIteration:
                return last
            last, refused = self._publish(value, last)

    async def _adrain(self, generator: Any, interruptible: Callable[[Any], Any]) -> str:
        """``_drain`` for an asynchronous generator."""
        last, refused = "null", None
        while True:
            error = self._interrupts.take() or refused
            try:
                stepped = generator.asend(None) if error is None else generator.athrow(error)
                value = await interruptible(stepped)
            except StopAsyncIteration:
                return last
            last, refused = self._publish(value, last)

    def _publish(self, value: Any, last: str) -> Tuple[str, Optional[Exception]]:
        """Sends a yielded value. One that cannot be encoded is raised at the generator's ``yield`` instead."""
        try:
            text = _encode(value)
        except Exception as error:  # also what the value's own methods raise
            return last, error
        self._channel.send("value", value=text)
        return text, None

    def _run_loop(self, awaited: Any) -> None:
        """Runs a coroutine or an asynchronous generator in an event loop. Its end is said before the loop is closed."""
        import asyncio
        from types import AsyncGeneratorType

        async def main() -> None:
            task, loop = asyncio.current_task(), asyncio.get_running_loop()
            cancellation = TaskCancellation(task, loop, self._interrupts)

            def interruptible(coroutine: Any) -> Any:
                return Interruptible(coroutine, self._interrupts, cancellation)

            self._interrupts.wake = cancellation.wake
            try:
                if isinstance(awaited, AsyncGeneratorType):
                    text = await self._adrain(awaited, interruptible)
                else:
                    text = _encode(await interruptible(awaited))
                self._end(text)
            except BaseException as error:
                self._fail(error)
            finally:
                self._interrupts.wake = None

        asyncio.run(main())

    # --- the end ---

    def _end(self, result: str) -> None:
        self._say_end(result=result, error=None, retryable=True)

    def _fail(self, error: BaseException) -> None:
        from .failures import is_only_interrupt

        if self._interrupts.delivered and is_only_interrupt(error):
            self._say_end(result=None, error=None, retryable=False)
            return
        told = wire.to_plain(self._describe_error(error))
        self._say_end(result=None, error=told, retryable=self._is_retryable(error))

    def _say_end(self, **fields: Any) -> None:
        if not self._has_ended:  # closing the event loop may raise once more
            self._has_ended = True
            _flush()
            self._channel.send("end", peak_memory_bytes=_peak_memory_bytes(), **fields)

    def _describe_error(self, error: BaseException) -> wire.FunctionError:
        from .failures import function_error

        return function_error(error, self._place.code_dir)

    def _is_retryable(self, error: BaseException) -> bool:
        try:
            return self._function is None or self._function.retryable(error)
        except Exception:  # an __instancecheck__ of the user's
            return True


def _encode(value: Any) -> str:
    from ..codec import encode_output

    return encode_output(value)


def _peak_memory_bytes() -> int:
    import resource

    usages: List[int] = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return processes.peak_bytes(max(usages))


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
