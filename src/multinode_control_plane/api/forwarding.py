"""From a process that follows to the one that leads: requests that need the runner, answered there and passed back as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import httpx
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from multinode.errors import NotReady
from multinode_control_plane.service import leaders
from multinode_control_plane.service.leaders import Leader
from multinode_control_plane.store import Store
from multinode_control_plane.tls import Certificate

PATIENCE_S = 20.0
"""How long a request waits for somebody to lead: longer than a take-over lasts."""
LOOK_S = 0.1
CONNECT_S = 2.0
READ_S = 90.0
"""Longer than a request waits for a change, and than streams are silent."""
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

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.aclose()

    async def answer_to(self, request: Request, content: bytes | AsyncIterator[bytes]) -> Response:
        """The leader's answer to the request with this body. One that is still to come can be sent once only, bytes can be sent again.

        Raises NotReady where nobody leads for `PATIENCE_S`, or the leader went away in the middle.
        """
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
        return StreamingResponse(
            answer.aiter_raw(), answer.status_code, passed, background=BackgroundTask(answer.aclose)
        )
