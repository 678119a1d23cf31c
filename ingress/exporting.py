"""``/metrics``: all workers' counts as one, on a port of its own, from a process of its own.

The process is a child of gunicorn's master, started by exec, so it holds no lock and no socket of
anybody else's, and ends when the master does, however that ended. A thread in the master would be
copied, with whatever it had locked, into each worker that is forked while somebody reads.

It takes any address it is given: bind it to loopback or to a network of your own.
"""

import atexit
import fcntl
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Metric, multiprocess, start_http_server
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.registry import Collector

from ledger.config import address
from ledger.errors import where

ENVIRONMENT_NAME = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus-client's own name for the directory in which workers keep what they count."""
DEFAULT_BIND = "127.0.0.1:9464"

log = logging.getLogger("ingress")

_own_directory: Path | None = None
_child: int | None = None


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


def start(bind: str) -> None:
    """Start the process that serves ``/metrics`` on ``bind``; in the master, once."""
    global _child  # noqa: PLW0603 - one for each master
    directory = os.environ[ENVIRONMENT_NAME]
    keep_or_remove = "keep" if _own_directory is None else "remove"
    arguments = ["-m", __name__, directory, bind, str(os.getpid()), keep_or_remove]
    # Not by `subprocess`, whose object each worker would inherit and complain about at its end.
    _child = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ)


def stop() -> None:
    """End that process, unless it has ended, and gunicorn has cleared it away."""
    if _child is None:
        return
    with suppress(ChildProcessError):
        if os.waitpid(_child, os.WNOHANG) == (0, 0):
            os.kill(_child, signal.SIGTERM)
            os.waitpid(_child, 0)


def worker_ended(process_id: int) -> None:
    """Keep what an ended worker had counted; what it alone could know is gone with it.

    Its files are added to those of all that ended before: a pair more for each worker that ever
    was would make every scrape slower than the one before. Never raises: that would end gunicorn.
    """
    try:
        _keep_counts(Path(os.environ[ENVIRONMENT_NAME]), process_id)
    except Exception as error:
        log.warning("the counts of worker %d are lost: %s", process_id, where(error))


def _keep_counts(directory: Path, process_id: int) -> None:
    with _locked(directory):
        untyped: Any = multiprocess.mark_process_dead
        untyped(process_id, str(directory))
        for kind in ("counter", "histogram", "gauge_max"):
            ended = directory / f"{kind}_{process_id}.db"
            if ended.exists():
                try:
                    _fold(ended, directory / f"{kind}_0.db", takes_larger=kind == "gauge_max")
                finally:
                    # One that cannot be read would spoil every scrape.
                    ended.unlink()


def _fold(source: Path, target: Path, *, takes_larger: bool) -> None:
    untyped: Any = MmapedDict
    ended = list(untyped.read_all_values_from_file(str(source)))
    with closing(untyped(str(target))) as values:
        for key, value, _, _ in ended:
            before, _ = values.read_value(key)
            values.write_value(key, max(before, value) if takes_larger else before + value, 0.0)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Nobody else folds or reads meanwhile: a count seen twice would look like a jump."""
    with (directory / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove(directory: Path, owner: int) -> None:
    # Workers inherit what is to be done at exit.
    if os.getpid() == owner:
        shutil.rmtree(directory, ignore_errors=True)


class _AllWorkers(Collector):
    """The sums of all workers, those included that ended."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        untyped: Any = multiprocess.MultiProcessCollector
        self._collector = untyped(None, str(directory))

    def collect(self) -> Iterable[Metric]:
        with _locked(self._directory):
            return list(self._collector.collect())


def main(directory: str, bind: str, parent: int) -> None:
    """Serve ``/metrics`` from ``directory`` on ``bind`` while ``parent`` is this one's parent."""
    registry = CollectorRegistry()
    registry.register(_AllWorkers(Path(directory)))
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
