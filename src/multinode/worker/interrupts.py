"""How a cancellation, a timeout or a machine that goes away is raised in the user's function, once, where its own code runs.

The supervisor writes an order into the order pipe (``order_for``) and rings SIGUSR2. The handler looks at the interrupted stack: if the first
frame of the worker that it meets on its way up is a *door* (one of the four small functions here that call user code), the
user's code was running, and the exception is raised right there. Otherwise our own code was running (it encodes or sends a
value, or an event loop waits): the interrupt stays pending, and whoever opens the next door takes it along. The supervisor
rings again until it hears ``interrupted``, so an interrupt that comes between two doors is not forgotten.
"""

from __future__ import annotations

import os
import signal

from ..errors import InvocationCancelledError, InvocationInterrupted, InvocationTimedOutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Callable, Dict, Generator, Optional, Tuple, Type, TypeVar

    T = TypeVar("T")

CANCELLED, TIMED_OUT, PREEMPTED = b"c", b"t", b"p"
_TAG_BYTES = 4


def order_for(number: int, order: bytes) -> bytes:
    """What is written into the order pipe: one of the orders above, for the worker's so-manyth invocation alone."""
    return order + number.to_bytes(_TAG_BYTES, "big")


class Interrupts:
    """The interrupt that this child was ordered to raise in its present invocation, if any; used in the main thread only.

    ``delivered`` becomes True when it is raised in the user's code, and ``on_delivery`` is called just before.
    """

    def __init__(
        self,
        order_fd: int,
        *,
        invocation_id: str,
        timeout_s: float,
        on_delivery: Callable[[], None],
    ) -> None:
        self.delivered = False
        self.wake: Optional[Callable[[], None]] = None
        """Called by the handler when an interrupt is pending: for an event loop, which may wait for long."""
        self._order_fd = order_fd
        self.invocation_id = invocation_id
        self._timeout_s = timeout_s
        self._on_delivery = on_delivery
        self._order = b""
        self._tag = b""
        self._pid = os.getpid()

    def begin(self, number: int) -> None:
        """From now on it is the worker's ``number``th invocation: what was ordered for an earlier one is nobody's."""
        self._tag = order_for(number, b"")
        self._order = b""
        self.delivered = False

    def listen(self) -> None:
        """From now on SIGUSR2 is heard."""
        os.set_blocking(self._order_fd, False)
        signal.signal(signal.SIGUSR2, self._on_bell)

    @property
    def pending(self) -> bool:
        """Whether an interrupt was ordered and not raised yet."""
        return bool(self._order) and not self.delivered

    def take(self) -> Optional[InvocationInterrupted]:
        """The pending interrupt, for the caller to raise in the user's code now; None where there is none."""
        return self._deliver() if self.pending else None

    def _on_bell(self, _: int, frame: Optional[FrameType]) -> None:
        if os.getpid() != self._pid:  # a fork of the user's
            return
        self._read_order()
        if not self.pending:
            return
        if _is_in_users_code(frame):
            raise self._deliver()
        if self.wake is not None:
            self.wake()

    def _read_order(self) -> None:
        try:
            while not self._order:
                read = os.read(self._order_fd, 1 + _TAG_BYTES)
                if not read or read[1:] == self._tag:
                    self._order = read[:1]
                    return
        except OSError:  # nothing there yet, or the user's code has closed it
            return

    def _deliver(self) -> InvocationInterrupted:
        self.delivered = True
        self._on_delivery()
        cls, message = self._words()
        return cls(message, invocation_id=self.invocation_id)

    def _words(self) -> Tuple[Type[InvocationInterrupted], str]:
        if self._order == TIMED_OUT:
            return InvocationTimedOutError, f"The timeout of {self._timeout_s:g} s is over."
        if self._order == PREEMPTED:
            return InvocationCancelledError, "The machine is being taken away (SIGTERM)."
        return InvocationCancelledError, "The invocation was cancelled."


# --- doors: nothing may be added to them, what runs in them counts as the user's -------------------------


def call(function: Callable[..., T], args: Any, kwargs: Dict[str, Any]) -> T:
    """Calls user code."""
    return function(*args, **kwargs)


def resume(generator: Generator[T, None, Any]) -> T:
    """Lets a generator go on to its next value."""
    return next(generator)


def throw(stepped: Any, error: BaseException) -> Any:
    """Raises in a generator or coroutine where it stopped."""
    return stepped.throw(error)


def step(coroutine: Any, value: Any) -> Any:
    """Lets a coroutine go on to its next suspension."""
    return coroutine.send(value)


_DOORS = frozenset(door.__code__ for door in (call, resume, throw, step))
_FOLDER = os.path.dirname(__file__) + os.sep  # noqa: PTH120 - runs in a signal handler, as text


def _is_in_users_code(frame: Optional[FrameType]) -> bool:
    """Whether user code, or what it called, was interrupted: a door is the first of our frames, and not the top one."""
    top = frame
    while frame is not None:
        if frame.f_code in _DOORS:
            return frame is not top
        if frame.f_code.co_filename.startswith(_FOLDER):
            return False
        frame = frame.f_back
    return False


class Interruptible:
    """An awaitable around the user's coroutine, in which a pending interrupt arrives at its ``await``.

    Waking the loop cancels the task (``TaskCancellation``); the CancelledError that this causes is turned into the interrupt.
    Any other CancelledError, and the user's own timeouts, pass through untouched.
    """

    def __init__(
        self, coroutine: Any, interrupts: Interrupts, cancellation: TaskCancellation
    ) -> None:
        self._coroutine = coroutine
        self._interrupts = interrupts
        self._cancellation = cancellation

    def __await__(self) -> Interruptible:
        return self

    def __iter__(self) -> Interruptible:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """One step; the loop's task calls it."""
        interrupt = self._take()
        if interrupt is not None:
            return throw(self._coroutine, interrupt)
        return step(self._coroutine, value)

    def throw(self, error: Any, value: Any = None, _: Any = None) -> Any:
        """One step with an exception; the loop's task calls it, on old Pythons with the class first."""
        if isinstance(error, type):
            error = value if isinstance(value, error) else error()
        interrupt = self._take() if self._cancellation.is_requested else None
        return throw(self._coroutine, interrupt or error)

    def close(self) -> None:
        """Closes the user's coroutine."""
        self._coroutine.close()

    def _take(self) -> Optional[InvocationInterrupted]:
        interrupt = self._interrupts.take()
        if interrupt is not None:
            self._cancellation.undo()
        return interrupt


class TaskCancellation:
    """The cancellation of the main task by which a pending interrupt wakes it."""

    def __init__(self, task: Any, loop: Any, interrupts: Interrupts) -> None:
        self.is_requested = False
        self._task = task
        self._loop = loop
        self._interrupts = interrupts

    def wake(self) -> None:
        """Cancels the task from inside its loop; called in a signal handler, which may only leave a note."""
        self._loop.call_soon_threadsafe(self._request)

    def undo(self) -> None:
        """The interrupt takes this cancellation's place: asyncio (from 3.11) must not count it."""
        if self.is_requested and hasattr(self._task, "uncancel"):
            self._task.uncancel()
        self.is_requested = False

    def _request(self) -> None:
        if self._interrupts.pending and not self.is_requested and not self._task.done():
            self.is_requested = True
            self._task.cancel()
