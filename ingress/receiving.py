"""The whole body of a delivery, within a size and a time.

Falcon by itself waits for the first piece of a body before it looks for a responder, for as long
as it takes, and gunicorn answers 500 when that piece never comes. Hence ``DeliveryApp``: the
responder starts at once, and all waiting is done by ``Receiver``.
"""

import asyncio
from typing import Any

from falcon.asgi import App, Request, Response

from ingress.errors import Incomplete, TooLarge

RECEIVE = "ingress.receive"
"""Where in a request's scope its way to the body stands."""


class DeliveryApp(App[Request, Response]):
    """A Falcon app whose responders start before any of the body has arrived.

    To Falcon every body is empty; whoever wants one asks a ``Receiver``.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # type: ignore[override]
        """The ASGI application."""
        if scope["type"] == "http":
            scope[RECEIVE] = receive
            receive = _nothing
        await super().__call__(scope, receive, send)


async def _nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


class Receiver:
    """Reads bodies of at most ``size_max_bytes``, each within ``seconds_max``.

    One timer serves all bodies that are arriving: a timer for each request, which is cancelled
    again in nearly every case, costs more than everything else that is done for it.
    """

    def __init__(self, size_max_bytes: int, seconds_max: float) -> None:
        self._size_max_bytes = size_max_bytes
        self._seconds_max = seconds_max
        # In the order of their ends, because each waits equally long.
        self._ends: dict[asyncio.Task[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def body(self, request: Request) -> bytes:
        """The body of ``request``; raises ``TooLarge`` or ``Incomplete``.

        Too large is known from the length that is announced, or as soon as a byte too many has
        arrived. Incomplete is what ends before the announced length, and what takes too long.
        """
        announced = request.content_length
        if announced is not None and announced > self._size_max_bytes:
            raise TooLarge
        body = await self._read(request.scope[RECEIVE])
        if announced is not None and len(body) != announced:
            raise Incomplete
        return body

    async def _read(self, receive: Any) -> bytes:  # noqa: ANN401 - ASGI's receive
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a body is read in a task")
        self._ends[task] = loop.time() + self._seconds_max
        if self._timer is None:
            self._timer = loop.call_later(self._seconds_max, self._cut)
        try:
            return await self._gather(receive)
        except asyncio.CancelledError:
            # Cancelled by somebody else, when the sender is gone or the process ends.
            if self._ends[task] > loop.time():
                raise
            task.uncancel()
            raise Incomplete from None
        finally:
            del self._ends[task]

    async def _gather(self, receive: Any) -> bytes:  # noqa: ANN401 - ASGI's receive
        body = bytearray()
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise Incomplete
            body += event.get("body", b"")
            if len(body) > self._size_max_bytes:
                raise TooLarge
            if not event.get("more_body", False):
                return bytes(body)

    def _cut(self) -> None:
        """End the reads whose time is over; look again when the next one's will be."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        for task, end in self._ends.items():
            if end > now:
                self._timer = loop.call_at(end, self._cut)
                break
            task.cancel()
