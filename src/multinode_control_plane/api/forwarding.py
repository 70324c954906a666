"""From a process that follows to the one that leads: requests that need the runner, answered there and passed back as they come."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import httpx
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from multinode.errors import NotReady, ServerStopping
from multinode_control_plane.service import leaders
from multinode_control_plane.service.leaders import Leader
from multinode_control_plane.store import Store
from multinode_control_plane.tls import Certificate

log = logging.getLogger(__name__)

T = TypeVar("T")
PATIENCE_S = 20.0
"""How long a request waits for somebody to lead: longer than a take-over lasts."""
LOOK_S = 0.1
CONNECT_S = 2.0
READ_S = 90.0
"""Longer than a request waits for a change, and than streams are silent."""
GRACE_S = 2.0
"""What is open when this process stops is still answered for so long."""
MARK = "multinode-forwarded"
"""The header of what was forwarded: the store's id of the process that is meant."""
_SENT = ("authorization", "content-type", "accept", "x-request-id", "traceparent", "user-agent")
_PASSED_BACK = ("content-type", "content-length", "retry-after", "x-content-type-options")


class Forwarding:
    """Finds the leader, if ``lives`` knows that it does, asks it, and passes its answer back. Lives on the event loop."""

    def __init__(
        self, lives: Callable[[Leader], bool], store: Store, certificate: Certificate | None
    ) -> None:
        self._lives = lives
        self._store = store
        self._client = httpx.AsyncClient(
            trust_env=False,
            verify=certificate.of_peers() if certificate else True,
            timeout=httpx.Timeout(READ_S, connect=CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        )
        self._over = asyncio.Event()

    def end(self) -> None:
        """This process stops: who waits for the leader's answer, a worker for its order above all, is sent elsewhere soon."""
        asyncio.get_running_loop().call_later(GRACE_S, self._over.set)

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.aclose()

    async def answer_to(self, request: Request, content: bytes | AsyncIterator[bytes]) -> Response:
        """The leader's answer to the request with this body. One that is still to come can be sent once only, bytes can be sent again.

        Raises NotReady where nobody leads for `PATIENCE_S`, or the leader went away in the middle; ServerStopping after `end`.
        """
        return await self._until_over(self._answer_to(request, content))

    async def _until_over(self, work: Awaitable[T]) -> T:
        """What it returns. Raises ServerStopping where it is over before."""
        working = asyncio.ensure_future(work)
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait({working, over}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
        finally:
            for task in (working, over):
                task.cancel()
            await asyncio.gather(working, over, return_exceptions=True)
        message = "This control plane stops, before the one that leads has answered."
        raise ServerStopping(message, "Ask again in a moment.")

    async def _answer_to(self, request: Request, content: bytes | AsyncIterator[bytes]) -> Response:
        headers = {name: request.headers[name] for name in _SENT if name in request.headers}
        until = time.monotonic() + PATIENCE_S
        while True:
            leader = await self._store.read(leaders.read)
            if leader.url is not None and self._lives(leader):
                headers[MARK] = str(leader.holder)
                answer = await self._ask(request, leader.url, content, headers)
                if answer is not None:
                    return answer
            if time.monotonic() > until:
                message = "No control plane leads at present."
                raise NotReady(message, "Ask again in a moment.")
            await asyncio.sleep(LOOK_S)

    async def _ask(
        self,
        request: Request,
        url: str,
        content: bytes | AsyncIterator[bytes],
        headers: dict[str, str],
    ) -> Response | None:
        """None where it was not reached, or leads no more: nothing was done, and it can be asked for again."""
        is_large = not isinstance(content, bytes)
        target = url + str(request.url.path)
        if request.url.query:
            target += f"?{request.url.query}"
        asked = self._client.build_request(request.method, target, content=content, headers=headers)
        if is_large and "content-length" in request.headers:
            asked.headers["content-length"] = request.headers["content-length"]
            asked.headers.pop("transfer-encoding", None)
        try:
            answer = await self._client.send(asked, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return None
        except httpx.TransportError as error:
            message = f"The process that leads went away: {type(error).__name__}."
            raise NotReady(message, "Ask again in a moment.") from error
        if answer.status_code == 503 and not is_large:
            await answer.aclose()
            return None
        passed = {name: answer.headers[name] for name in _PASSED_BACK if name in answer.headers}
        body = answer.aiter_raw() if "content-length" in passed else self._lines_of(answer)
        return StreamingResponse(
            body, answer.status_code, passed, background=BackgroundTask(answer.aclose)
        )

    async def _lines_of(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        """A stream of unknown length, to its end or to ours. Who reads one knows from its lines whether it was all."""
        parts = answer.aiter_raw()
        try:
            while True:
                yield await self._until_over(anext(parts))
        except (StopAsyncIteration, ServerStopping):
            return
        except httpx.TransportError as error:
            log.warning("the process that leads went away in an answer: %s", type(error).__name__)
