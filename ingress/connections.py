"""The connections of one worker: how many there are, and how long each may take.

Gunicorn's worker waits for ever for headers that do not come and for an answer to be taken, and
it never counts its connections. Whoever opens enough of them and then does nothing would keep the
sender out. What takes too long is closed here, and when there are too many connections, those
that have waited longest for the other side make room. A good delivery is whole within
milliseconds, and from then on it is we who are waited for.

The body has its own time, in ``ingress.receiving``, because there is somebody to answer.
"""

import resource
import socket
from typing import Any

from gunicorn.asgi.parser import ParseError  # type: ignore[import-untyped]
from gunicorn.asgi.protocol import ASGIProtocol  # type: ignore[import-untyped]

HEADERS_SECONDS_MAX = 10.0
"""How long headers may take: from the connection, later from a request's first byte, to their end.

A delivery's fit into one packet. Between two requests it is gunicorn's ``keepalive`` that counts.
"""
ANSWER_SECONDS_MAX = 15.0
"""How long it may take from there until the answer was taken.

More than the body has and the books have together: only who does not take the answer gets here.
"""
SWEEP_SECONDS = 1.0
"""How late that may be noticed. One timer serves all: one for each request would cost more."""
EVICTED_PART = 10
"""One in so many that could make room does, so that not every new one has to look at all others."""
FILES_RESERVED = 64
"""How many open files a worker needs for other things; without one, nobody is accepted."""
TINY_BYTES = 256
TINY_PIECES_MAX = 512
"""In how many pieces below that size a body may arrive; networks make a handful of them.

A body of the size limit in chunks of one byte takes a quarter of a second of this process's time.
"""
UNTAKEN_BYTES_MAX = 4096
"""How much of its answers may wait in the kernel, and again here, for who does not take them.

Each is under one KiB. The kernel by itself would keep megabytes, and as long it looked as if they
were taken.
"""


class Connection(ASGIProtocol):  # type: ignore[misc]
    """Gunicorn's protocol, which also tells when it is late; one of ``Connections``."""

    def __init__(self, worker: Any, connections: "Connections") -> None:  # noqa: ANN401
        super().__init__(worker)
        self._connections = connections
        self._has_begun = False
        self._is_whole = False
        self._tiny_pieces = 0
        self.since: float = worker.loop.time()
        """When it came, or since then its latest request began or had all its headers."""

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - asyncio's callback
        """Somebody connected."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=UNTAKEN_BYTES_MAX)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        super().connection_lost(exc)
        self._connections.discard(self)

    @property
    def is_at_work(self) -> bool:
        """Whether a whole request is here, and its answer waits for nobody but us."""
        is_taken = not self._flow_control.write_paused
        return self._is_whole and self._current_request is not None and is_taken

    def is_late(self, now: float) -> bool:
        """Whether it takes longer than it may."""
        seconds = now - self.since
        if self._current_request is not None or self.transport.is_closing():
            return seconds > ANSWER_SECONDS_MAX
        is_awaited = self._has_begun or self.req_count < 2
        return is_awaited and seconds > HEADERS_SECONDS_MAX

    def cut(self) -> None:
        """End it, with an answer where it has begun a request and could still hear one."""
        if self._current_request is not None or self.transport.is_closing():
            self.transport.abort()
            return
        if self._has_begun:
            self._send_error_response(408, "The headers took too long")
        self._close_transport()

    # Requests that are sent before the answer to the one before them are not served: the books
    # would have to be shared with thousands of them at once. No proxy sends any, and a POST is
    # not to be sent so (RFC 9112, section 9.3.2).
    def _will_close(self, request: Any, response_requires_close: Any) -> bool:  # noqa: ANN401
        if super()._will_close(request, response_requires_close):
            return True
        return self._callback_parser is not None and bool(self._callback_parser.remaining())

    # Every byte of HTTP comes through here, also what was sent ahead of its turn.
    def _feed_callback_parser(self, data: bytes) -> Any:  # noqa: ANN401
        going_on = super()._feed_callback_parser(data)
        if self._current_request is None and not self._has_begun:
            self._has_begun = True
            self.since = self.worker.loop.time()
        return going_on

    def _on_headers_complete(self) -> Any:  # noqa: ANN401
        self._has_begun = False
        self._is_whole = False
        self._tiny_pieces = 0
        self.since = self.worker.loop.time()
        return super()._on_headers_complete()

    def _on_body(self, chunk: bytes) -> None:
        if len(chunk) < TINY_BYTES:
            self._tiny_pieces += 1
            if self._tiny_pieces > TINY_PIECES_MAX:
                # What calls this answers 400 and closes the connection.
                raise ParseError("The body arrives in too many pieces")
        super()._on_body(chunk)

    def _on_message_complete(self) -> None:
        self._is_whole = True
        super()._on_message_complete()


class Connections:
    """All open connections of ``worker``, at most as many as ``worker_connections`` says."""

    def __init__(self, worker: Any) -> None:  # noqa: ANN401 - gunicorn's worker
        self._log = worker.log
        self._loop = worker.loop
        self._count_max = worker.worker_connections
        files_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files_max != resource.RLIM_INFINITY:
            self._count_max = min(self._count_max, files_max - FILES_RESERVED)
        # In the order of their coming, because many may come in one turn of the loop's clock.
        self._open: dict[Connection, None] = {}
        self._evicted = 0

    def add(self, connection: Connection) -> None:
        """Take a new one; where there are too many others, some of them make room."""
        if len(self._open) >= self._count_max:
            self._make_room()
        self._open[connection] = None

    def _make_room(self) -> None:
        oldest = sorted(self._open, key=lambda one: (one.is_at_work, one.since))
        waiting = sum(not one.is_at_work for one in oldest)
        for one in oldest[: max(1, waiting // EVICTED_PART)]:
            del self._open[one]
            one.transport.abort()
            self._evicted += 1

    def discard(self, connection: Connection) -> None:
        """Forget one that is closed."""
        self._open.pop(connection, None)

    def sweep(self) -> None:
        """Close what is late, and look again in a while."""
        self._loop.call_later(SWEEP_SECONDS, self.sweep)
        now = self._loop.time()
        for connection in [one for one in self._open if one.is_late(now)]:
            connection.cut()
        if self._evicted:
            self._log.warning(
                "more than %d connections: %d were closed that had waited longest",
                self._count_max,
                self._evicted,
            )
            self._evicted = 0


def bound_connections(worker: Any) -> None:  # noqa: ANN401 - gunicorn's worker
    """Have every connection that ``worker`` accepts be one of its ``Connections``."""
    connections = Connections(worker)
    create_server = worker.loop.create_server

    def bounded(_: object, sock: socket.socket, **options: Any) -> Any:  # noqa: ANN401
        # Whatever is accepted inherits it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNTAKEN_BYTES_MAX)
        # Without a backlog the loop makes it 100, and who then comes with a burst of others is
        # heard only when it knocks again, a second later.
        return create_server(
            lambda: Connection(worker, connections),
            sock=sock,
            backlog=worker.cfg.backlog,
            **options,
        )

    # Gunicorn has no setting for its protocol; the loop is where it is handed over.
    worker.loop.create_server = bounded
    connections.sweep()
