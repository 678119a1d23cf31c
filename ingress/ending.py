"""How a worker ends: it tells everyone who keeps a connection before it closes any.

Gunicorn's worker closes a kept connection after the answer that it is just giving, also when that
answer said nothing of it. The sender's next delivery then meets a closed connection, and a proxy
does not send a POST again. So for a while every answer says ``Connection: close``, and only then
is gunicorn told to end. It is so at every SIGTERM, and at each SIGHUP for the old workers.
"""

import signal
from typing import Any

ANNOUNCING_SECONDS = 1.0


class Announcing:
    """An ASGI app that answers as ``app`` does, and from ``announce`` on says that it ends."""

    def __init__(self, app: Any) -> None:  # noqa: ANN401 - an ASGI app
        self._app = app
        self._is_ending = False

    def announce(self) -> None:
        """Have every further answer close its connection."""
        self._is_ending = True

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        """The ASGI application."""
        # Also for what is under way when the end is announced: the answer may take a while.
        await self._app(scope, receive, self._announcing(send))

    def _announcing(self, send: Any) -> Any:  # noqa: ANN401
        async def send_(event: dict[str, Any]) -> None:
            if self._is_ending and event["type"] == "http.response.start":
                event["headers"] = [*event["headers"], (b"connection", b"close")]
            await send(event)

        return send_


def announce_at_sigterm(worker: Any) -> None:  # noqa: ANN401 - gunicorn's worker
    """Put the announcement before what the worker does at SIGTERM."""
    worker.asgi = app = Announcing(worker.asgi)

    def end() -> None:
        app.announce()
        # Who comes after this keeps no connection; without others there is nobody to wait for.
        seconds = ANNOUNCING_SECONDS if worker.nr_conns else 0.0
        worker.loop.call_later(seconds, worker.handle_exit_signal)

    worker.loop.add_signal_handler(signal.SIGTERM, end)
