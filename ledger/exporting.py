"""``/metrics`` on a port of its own: what one process counts, or what several do, as one.

It takes any address it is given: bind it to loopback or to a network of your own.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Metric, multiprocess, start_http_server
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.registry import Collector

from ledger.errors import where

ENVIRONMENT_NAME = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus-client's own name for the directory in which processes keep what they count."""

log = logging.getLogger("ledger")


@contextmanager
def exported(bind: str, registry: CollectorRegistry) -> Iterator[None]:
    """``registry`` at ``bind`` for the time of the block, from a thread; raises ``OSError``."""
    host, _, port = bind.rpartition(":")
    server, thread = start_http_server(int(port), host.strip("[]"), registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def shared_directory(prefix: str) -> Iterator[Path]:
    """An empty directory for the time of the block, in which processes share their counts."""
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def registry_of(directory: Path) -> CollectorRegistry:
    """The sums of all processes that share ``directory``, those included that ended."""
    registry = CollectorRegistry()
    registry.register(_AllProcesses(directory))
    return registry


def keep_counts(directory: Path, process_id: int) -> None:
    """Keep what an ended process had counted; what it alone could know is gone with it.

    Its files are added to those of all that ended before: a pair more for each process that ever
    was would make every scrape slower than the one before. Never raises: whoever watches the
    processes has other things to do.
    """
    try:
        _keep_counts(directory, process_id)
    except Exception as error:
        log.warning("the counts of process %d are lost: %s", process_id, where(error))


def _keep_counts(directory: Path, process_id: int) -> None:
    with _locked(directory):
        untyped: Any = multiprocess.mark_process_dead
        untyped(process_id, str(directory))
        for kind in ("counter", "histogram", "gauge_max", "gauge_sum"):
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


class _AllProcesses(Collector):
    """The sums of all processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        untyped: Any = multiprocess.MultiProcessCollector
        self._collector = untyped(None, str(directory))

    def collect(self) -> Iterable[Metric]:
        with _locked(self._directory):
            # A process that has just begun has an empty file for a moment, which the library
            # cannot read.
            files = [str(path) for path in self._directory.glob("*.db") if path.stat().st_size]
            return list(self._collector.merge(files, accumulate=True))


def count_alone() -> None:
    """Keep this process's counts to itself, whatever the environment says of others'."""
    os.environ.pop(ENVIRONMENT_NAME, None)
