"""``/metrics``: all workers' counts as one, on a port of its own, from a process of its own.

The process is a child of gunicorn's master, started by exec, so it holds no lock and no socket of
anybody else's, and ends when the master does, however that ended. A thread in the master would be
copied, with whatever it had locked, into each worker that is forked while somebody reads. When it
ends alone, the master starts it again.

It takes any address it is given: bind it to loopback or to a network of your own.
"""

import atexit
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import start_http_server

from ledger.config import address
from ledger.exporting import ENVIRONMENT_NAME, keep_counts, registry_of

DEFAULT_BIND = "127.0.0.1:9464"

PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 1.0, 60.0
"""How long to wait before it is started again: twice as long each time that it did not live for
the longest pause."""

log = logging.getLogger("ingress")

OURS = ("INGRESS_", "LEDGER_", "DATABASE_URL", "PG", "OTEL_")
"""How settings begin that may hold secrets, or whose meaning is for others."""

_own_directory: Path | None = None
_exporter: "Exporter | None" = None


def read_metrics_bind(environment: Mapping[str, str] = os.environ) -> str | None:
    """``INGRESS_METRICS_BIND``, host and port; ``None`` when it is empty, which is off.

    Raises ``InvalidSetting``.
    """
    name = "INGRESS_METRICS_BIND"
    if environment.get(name) == "":
        return None
    return address(environment, name, DEFAULT_BIND)


def prepare() -> None:
    """Give the workers an empty directory; once in the master, before they are forked.

    A directory that the environment names is emptied; otherwise one is made, and removed at the
    end.
    """
    global _own_directory  # noqa: PLW0603 - gunicorn may run its configuration file again
    if _own_directory is not None:
        return
    if named := os.environ.get(ENVIRONMENT_NAME):
        Path(named).mkdir(mode=0o700, parents=True, exist_ok=True)
        for left_over in Path(named).glob("*.db"):
            left_over.unlink()
        return
    _own_directory = Path(tempfile.mkdtemp(prefix="reward-ingress-metrics-"))
    os.environ[ENVIRONMENT_NAME] = str(_own_directory)
    atexit.register(_remove, _own_directory, os.getpid())


def start(bind: str, arbiter: Any) -> None:  # noqa: ANN401 - gunicorn's arbiter
    """Have ``/metrics`` served on ``bind`` while ``arbiter``, the master, runs; once in it."""
    global _exporter  # noqa: PLW0603 - one for each master
    keep_or_remove = "keep" if _own_directory is None else "remove"
    exporter = _exporter = Exporter(
        ["-m", __name__, os.environ[ENVIRONMENT_NAME], bind, str(os.getpid()), keep_or_remove]
    )
    exporter.look()
    manage_workers = arbiter.manage_workers

    def manage() -> None:
        exporter.look()
        manage_workers()

    # Gunicorn has no hook for a child that is no worker, nor for the passing of time; this it does
    # once a second, and not any more when it stops.
    arbiter.manage_workers = manage


def stop() -> None:
    """End what serves ``/metrics``."""
    if _exporter is not None:
        _exporter.end()


class Exporter:
    """The process that serves ``/metrics``, as its parent sees it: Python with ``arguments``."""

    def __init__(
        self, arguments: Sequence[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._arguments = arguments
        self._clock = clock
        self._process_id: int | None = None
        self._started_at = self._start_at = clock()
        self._pause_seconds = PAUSE_SECONDS_MIN

    def look(self) -> None:
        """Start it, at first and after a pause when it has ended. Never raises: the master goes on.

        To be called about once a second.
        """
        now = self._clock()
        if self._process_id is not None:
            if _is_alive(self._process_id):
                return
            self._process_id = None
            if now - self._started_at > PAUSE_SECONDS_MAX:
                self._pause_seconds = PAUSE_SECONDS_MIN
            self._put_off(now)
            log.error("what serves /metrics has ended; it is started again")
        if now < self._start_at:
            return
        try:
            # Without what it does not need to know: it answers anybody. Not by `subprocess`, whose
            # object each worker would inherit and complain about.
            needed = {n: value for n, value in os.environ.items() if not n.startswith(OURS)}
            self._process_id = os.posix_spawn(
                sys.executable, [sys.executable, *self._arguments], needed
            )
            self._started_at = now
        except OSError as error:
            self._put_off(now)
            log.error("what serves /metrics cannot be started: %s", error.strerror)

    def end(self) -> None:
        """End it, and wait until it has."""
        if self._process_id is not None and _is_alive(self._process_id):
            os.kill(self._process_id, signal.SIGTERM)
            os.waitpid(self._process_id, 0)
        self._process_id = None

    def _put_off(self, now: float) -> None:
        self._start_at = now + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, PAUSE_SECONDS_MAX)


def _is_alive(process_id: int) -> bool:
    try:
        return os.waitpid(process_id, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        # Gunicorn has cleared it away.
        return False


def worker_ended(process_id: int) -> None:
    """Keep what an ended worker had counted. Never raises: that would end gunicorn."""
    keep_counts(Path(os.environ[ENVIRONMENT_NAME]), process_id)


def _remove(directory: Path, owner: int) -> None:
    # Workers inherit what is to be done at exit.
    if os.getpid() == owner:
        shutil.rmtree(directory, ignore_errors=True)


def main(directory: str, bind: str, parent: int) -> None:
    """Serve ``/metrics`` from ``directory`` on ``bind`` while ``parent`` is this one's parent."""
    registry = registry_of(Path(directory))
    host, _, port = bind.rpartition(":")
    is_listening = has_complained = False
    while os.getppid() == parent:
        if not is_listening:
            try:
                start_http_server(int(port), host.strip("[]"), registry)
                is_listening = True
            except OSError as error:
                # Perhaps of the master before this one, which is just leaving.
                if not has_complained:
                    _complain(f"/metrics waits for {bind}: {error.strerror}")
                has_complained = True
        time.sleep(0.5)


def _complain(sentence: str) -> None:
    os.write(2, f"{sentence}\n".encode())


if __name__ == "__main__":
    _directory, _bind, _parent, _end = sys.argv[1:]
    # Ctrl-C in a terminal is for the master.
    os.setsid()
    main(_directory, _bind, int(_parent))
    if _end == "remove":
        # The master was killed, and could not.
        shutil.rmtree(_directory, ignore_errors=True)
