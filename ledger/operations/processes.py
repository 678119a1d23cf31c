"""Child processes that are started, watched and ended together, each by its own id."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

import psutil

STOP_SECONDS_MAX = 15.0


class Child(NamedTuple):
    """A process of ours."""

    name: str
    process: subprocess.Popen[bytes]

    def identity(self) -> dict[str, object]:
        """What tells this process from any other that gets its number later."""
        return {"pid": self.process.pid, "started": psutil.Process(self.process.pid).create_time()}


def start(name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Child:
    """Start ``python -m ledger`` with ``arguments``, out of reach of the terminal's Ctrl-C.

    Whoever started it stops it in its own order.
    """
    command = [sys.executable, "-m", "ledger", *arguments]
    return Child(
        name,
        subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, start_new_session=True
        ),
    )


def stop(children: Sequence[Child]) -> None:
    """End the children one after the other, in their order: ask, wait, insist."""
    for child in children:
        child.process.terminate()
        try:
            child.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


def end_leftover(identity: Mapping[str, object]) -> None:
    """End a process that a killed run left behind, and its children, if it is still the same."""
    try:
        process = psutil.Process(int(str(identity["pid"])))
        if process.create_time() != identity["started"]:
            return
        family = [process, *process.children(recursive=True)]
        for member in family:
            member.terminate()
    except psutil.NoSuchProcess:
        return
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS_MAX)
    for member in alive:
        member.kill()
    psutil.wait_procs(alive, timeout=STOP_SECONDS_MAX)


def asked_to_end() -> list[int]:
    """A list to which every SIGINT and SIGTERM is added from now on.

    Not a ``threading.Event``: a handler runs between any two steps of the main thread, and so also
    while that holds the lock for which ``set`` would then wait for ever.
    """
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.append(number))
    return asked


def unwind_at_sigterm() -> None:
    """Have SIGTERM end this process as Ctrl-C does, through every ``finally``.

    By itself it would end at once, and leave running what it has started.
    """

    def unwind(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, unwind)


def end_with(parent: int) -> None:
    """Ask this process to end when ``parent``, which started it, is gone, however that ended.

    Its number must be told: it may be gone before this one can look.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
