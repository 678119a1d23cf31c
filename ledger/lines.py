"""Log lines to a descriptor, without ever waiting for whoever reads it.

A pipe that nobody empties would stop the event loop, and with it every delivery or call. So a
thread writes, in pieces of a tenth of a second, and what it cannot write is kept up to a bound:
beyond that, lines are dropped and counted. A process that is killed takes the last tenth with it.
"""

import asyncio
import json
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from select import select
from typing import Any

import msgspec

GATHER_SECONDS = 0.1
KEPT_BYTES_MAX = 4 * 1024 * 1024
CLOSE_SECONDS_MAX = 1.0


_ENCODE = msgspec.json.Encoder().encode


def json_line(facts: dict[str, Any]) -> bytes:
    """``facts`` as one line of JSON in ASCII.

    An identifier may hold what a reader takes for the end of a line, or a terminal for a command.
    """
    line = _ENCODE(facts)
    return line if line.isascii() else json.dumps(json.loads(line)).encode()


class Lines:
    """Writes lines to ``descriptor``; ``dropped`` is called for each that it cannot keep.

    Belongs to one event loop; its thread starts with the first line, so never before a fork.
    """

    def __init__(
        self,
        descriptor: int,
        dropped: Callable[[], None] = lambda: None,
        *,
        kept_bytes_max: int = KEPT_BYTES_MAX,
    ) -> None:
        self._descriptor = descriptor
        self._dropped = dropped
        self._kept_bytes_max = kept_bytes_max
        self._gathered: list[bytes] = []
        self._pieces: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        # Two counts that only grow, one for each thread: no lock is needed to compare them.
        self._taken_bytes = 0
        self._written_bytes = 0

    def write(self, line: bytes) -> None:
        """Write ``line``, without its end, soon."""
        if self._taken_bytes - self._written_bytes > self._kept_bytes_max:
            self._dropped()
            return
        self._taken_bytes += len(line) + 1
        self._gathered.append(line)
        if len(self._gathered) == 1:
            asyncio.get_running_loop().call_later(GATHER_SECONDS, self._hand_over)

    def close(self) -> None:
        """Write what is gathered, unless nobody reads it within a second."""
        self._hand_over()
        if self._thread is not None:
            self._pieces.put(None)
            self._thread.join(CLOSE_SECONDS_MAX)

    def _hand_over(self) -> None:
        if not self._gathered:
            return
        gathered, self._gathered = self._gathered, []
        if self._thread is None:
            # A daemon: a reader that never reads must not keep the process alive.
            self._thread = threading.Thread(target=self._write_pieces, name="log", daemon=True)
            self._thread.start()
        self._pieces.put(b"\n".join((*gathered, b"")))

    def _write_pieces(self) -> None:
        while (piece := self._pieces.get()) is not None:
            rest = memoryview(piece)
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:
                    # Somebody who shares the descriptor made it so.
                    select([], [self._descriptor], [])
                except OSError:
                    # Nobody will ever read it: what comes is dropped when enough is kept.
                    return
            self._written_bytes += len(piece)
