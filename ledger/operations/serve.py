"""``ledger serve``: the gRPC service, in one process or in several on one port."""

import os
import signal
import socket
import threading

from ledger.operations import processes

RESTART_SECONDS = 1.0


class AddressTaken(Exception):
    """Something else listens on the address."""


def serve(url: str, bind: str, count: int) -> None:
    """Serve on ``bind`` until SIGTERM or SIGINT, from ``count`` processes.

    With more than one this process only watches: a child that died is started again. Raises
    ``AddressTaken``.
    """
    check_free(bind)
    if count == 1:
        serve_alone(url, bind)
    else:
        _watch(url, bind, count)


def serve_alone(url: str, bind: str, *, shares_port: bool = False) -> None:
    """Serve from this process; ends with its parent when it shares the port."""
    # Imported here: grpc starts threads, and whoever only watches shall not have them.
    from ledger import server

    if shares_port:
        processes.end_with_parent()
    server.run(url, bind, shares_port=shares_port)


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


def _watch(url: str, bind: str, count: int) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    environment = {**os.environ, "DATABASE_URL": url, "LEDGER_BIND": bind, "LEDGER_PROCESSES": "1"}
    children: list[processes.Child] = []
    try:
        while not stop.is_set():
            children = [child for child in children if child.process.poll() is None]
            for _ in range(count - len(children)):
                arguments = ["serve", "--shares-port"]
                children.append(processes.start("serve", arguments, environment))
            stop.wait(RESTART_SECONDS)
    finally:
        for child in children:
            child.process.terminate()
        processes.stop(children)
