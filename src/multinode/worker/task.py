"""One invocation in the child: its function is called, its values and its end are said over the channel."""

from __future__ import annotations

import sys
from contextlib import suppress

from .. import wire
from . import processes
from .interrupts import Interruptible, TaskCancellation, call, resume, throw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional, Tuple

    from ..function import Function
    from .channel import Channel
    from .interrupts import Interrupts


class Task:
    """One invocation of ``function``; ``has_ended`` says whether its end was told."""

    def __init__(
        self,
        channel: Channel,
        interrupts: Interrupts,
        peak_memory: processes.PeakMemory,
        function: Function,
        code_dir: str,
    ) -> None:
        self.has_ended = False
        self._channel = channel
        self._interrupts = interrupts
        self._peak_memory = peak_memory
        self._function = function
        self._code_dir = code_dir

    def perform(self, input_text: str) -> None:
        """Calls the function with the arguments of ``input_text`` and says what came of it."""
        from types import AsyncGeneratorType, CoroutineType, GeneratorType

        from ..codec import decode

        try:
            args, kwargs = decode(input_text)
            self._raise_pending()
            returned = call(self._function.func, args, kwargs)
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
        from .failures import function_error, is_only_interrupt

        if self._interrupts.delivered and is_only_interrupt(error):
            self._say_end(result=None, error=None, retryable=False)
            return
        told = wire.to_plain(function_error(error, self._code_dir))
        self._say_end(result=None, error=told, retryable=self._is_retryable(error))

    def _say_end(self, **fields: Any) -> None:
        if not self.has_ended:  # closing the event loop may raise once more
            flush()
            peak_memory_bytes = self._peak_memory.bytes()
            self.has_ended = True
            self._channel.send("end", peak_memory_bytes=peak_memory_bytes, **fields)

    def _is_retryable(self, error: BaseException) -> bool:
        try:
            return self._function.retryable(error)
        except Exception:  # an __instancecheck__ of the user's
            return True


def flush() -> None:
    """Writes out what the user's code has printed."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed, or replaced by the user's code
            stream.flush()


def _encode(value: Any) -> str:
    from ..codec import encode_output

    return encode_output(value)
