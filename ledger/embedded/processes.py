"""Server processes that an earlier supervisor left behind, found by where they work."""

import contextlib
import signal
import time
from pathlib import Path

import psutil

from ledger.embedded.errors import EmbeddedPostgresError

FAST_SECONDS_MAX = 60.0
IMMEDIATE_SECONDS_MAX = 2.0


def end_servers_in(data_directory: Path) -> None:
    """End every server process that works in `data_directory`, then remove its pid file.

    The caller holds the directory's lock, so none of them has an owner any more. The process id
    in the file proves nothing: it may name a process that nobody reaped, or one that got the
    number since. A server's processes all have the data as their working directory, and that is
    what is looked for. Raises `EmbeddedPostgresError` if one of them cannot be ended.
    """
    pid_file = data_directory / "postmaster.pid"
    # A server in order removes the file: without it there is nothing to look for.
    if not pid_file.exists():
        return
    servers = _servers_in(data_directory)
    postmaster = _recorded_process_id(pid_file)
    # The postmaster ends its own children in order. Those that lost theirs are asked themselves:
    # to them the polite signal would only mean to give up the query.
    postmasters = [server for server in servers if server.pid == postmaster]
    _send(signal.SIGINT, postmasters)
    gone = not servers or (bool(postmasters) and _are_gone(data_directory, FAST_SECONDS_MAX))
    for request in (signal.SIGQUIT, signal.SIGKILL):
        if not gone:
            _send(request, _servers_in(data_directory))
            gone = _are_gone(data_directory, IMMEDIATE_SECONDS_MAX)
    if not gone:
        raise EmbeddedPostgresError(
            f"Server processes that work in {data_directory} cannot be ended; end them by hand and"
            " start again."
        )
    pid_file.unlink(missing_ok=True)


def _recorded_process_id(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_text(encoding="utf-8").partition("\n")[0])
    except (FileNotFoundError, ValueError):
        # Half written, or just removed by a server that ends.
        return None


def _send(request: signal.Signals, processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(request)


def _are_gone(data_directory: Path, seconds: float) -> bool:
    """Wait until no server process works in `data_directory`, and say whether that came true."""
    deadline = time.monotonic() + seconds
    while _servers_in(data_directory):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _servers_in(data_directory: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _works_in(process, data_directory)]


def _works_in(process: psutil.Process, data_directory: Path) -> bool:
    try:
        return (
            process.name() == "postgres"
            and process.status() != psutil.STATUS_ZOMBIE
            and Path(process.cwd()) == data_directory
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        # Gone, or another user's: the server's processes are this user's, or this user is root.
        return False
