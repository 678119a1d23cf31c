"""``ledger serve``: the gRPC service, in one process or in several on one port."""

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping

from ledger.access import Access
from ledger.config import ServeSettings
from ledger.exporting import (
    ENVIRONMENT_NAME,
    count_alone,
    exported,
    keep_counts,
    registry_of,
    shared_directory,
)
from ledger.operations import processes

LOOK_SECONDS = 0.2
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.5, 30.0
"""How long to wait before a process is started again: twice as long each time that it did not live
for the longest pause."""

log = logging.getLogger("ledger")


class AddressTaken(Exception):
    """Something else listens on the address."""


def serve(url: str, bind: str, count: int, settings: ServeSettings) -> None:
    """Serve on ``bind`` until SIGTERM or SIGINT, from ``count`` processes; 0 is one per core.

    With more than one this process only watches: a child that died is started again. Raises
    ``AddressTaken``, or ``InvalidSetting`` where ``bind`` needs what the settings do not have.
    """
    Access(settings.access).check(bind)
    for address in (bind, settings.health_bind, settings.metrics_bind):
        if address is not None:
            check_free(address)
    count = count or len(os.sched_getaffinity(0))
    if count == 1:
        count_alone()
        _run(url, bind, settings, shares_port=False)
    else:
        _serve_together(url, bind, count, settings.metrics_bind)


def serve_as_child(url: str, bind: str, settings: ServeSettings, parent: int) -> None:
    """Serve on a port that is shared, until a signal or until the process ``parent`` is gone."""
    processes.end_with(parent)
    _run(url, bind, settings, shares_port=True)


def _run(url: str, bind: str, settings: ServeSettings, *, shares_port: bool) -> None:
    # Else whoever breaks a connection off writes into our log.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Imported here: grpc starts threads, and whoever only watches shall not have them.
    from ledger import server

    server.run(url, bind, settings, shares_port=shares_port)


def check_free(bind: str) -> None:
    """Raises ``AddressTaken`` when ``bind`` is in use: servers that share a port do not notice."""
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            raise AddressTaken(f"{bind} cannot be bound: something else listens there") from None


def _serve_together(url: str, bind: str, count: int, metrics_bind: str | None) -> None:
    environment = {
        # Drawn here, so that a user has the same hash in all of them.
        "LEDGER_LOG_KEY": os.environ.get("LEDGER_LOG_KEY") or secrets.token_hex(32),
        "DATABASE_URL": url,
        "LEDGER_BIND": bind,
    }
    if metrics_bind is None:
        _watch(count, environment, lambda _process_id: None)
        return
    with (
        shared_directory("reward-ledger-metrics-") as directory,
        exported(metrics_bind, registry_of(directory)),
    ):
        environment[ENVIRONMENT_NAME] = str(directory)
        _watch(count, environment, lambda process_id: keep_counts(directory, process_id))


def _watch(count: int, environment: Mapping[str, str], ended: Callable[[int], None]) -> None:
    asked = processes.asked_to_end()

    def start() -> processes.Child:
        arguments = ["serve", "--child-of", str(os.getpid())]
        return processes.start("serve", arguments, {**os.environ, **environment})

    kept = [Kept(start, ended) for _ in range(count)]
    try:
        while not asked:
            for each in kept:
                each.look()
            time.sleep(LOOK_SECONDS)
    finally:
        children = [each.child for each in kept if each.child is not None]
        for child in children:
            child.process.terminate()
        processes.stop(children)


class Kept:
    """A child that is started, and again when it has ended; ``ended`` is told its process id.

    Again and again it is started after ever longer pauses, up to ``PAUSE_SECONDS_MAX``.
    """

    def __init__(
        self,
        start: Callable[[], processes.Child],
        ended: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = start
        self._ended = ended
        self._clock = clock
        self._started_at = self._start_at = clock()
        self._pause_seconds = PAUSE_SECONDS_MIN
        self.child: processes.Child | None = None
        """The one that runs, if one does."""

    def look(self) -> None:
        """Start it when it is time to; to be called several times a second."""
        now = self._clock()
        if self.child is None:
            if now >= self._start_at:
                self._begin(now)
            return
        if (status := self.child.process.poll()) is None:
            return
        self._ended(self.child.process.pid)
        self.child = None
        if now - self._started_at > PAUSE_SECONDS_MAX:
            self._pause_seconds = PAUSE_SECONDS_MIN
        self._put_off(now, f"ended with status {status}")

    def _begin(self, now: float) -> None:
        self._started_at = now
        try:
            self.child = self._start()
        except OSError as error:
            self._put_off(now, f"could not be started: {error.strerror}")

    def _put_off(self, now: float, what: str) -> None:
        self._start_at = now + self._pause_seconds
        log.error("a process of the service %s; the next try is in %g s", what, self._pause_seconds)
        self._pause_seconds = min(2 * self._pause_seconds, PAUSE_SECONDS_MAX)
