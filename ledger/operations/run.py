"""``ledger run``: everything on one machine, started and stopped together."""

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from ledger.config import Settings, address, read_serve_settings
from ledger.database import Role
from ledger.exporting import ENVIRONMENT_NAME
from ledger.operations import processes
from ledger.operations.migrate import migrate
from ledger.operations.serve import AddressTaken, check_free
from ledger.operations.source import source

READY_SECONDS_MAX = 30.0

_TOKENS_GIVEN = {
    "INGRESS_TOKEN": "the one of INGRESS_TOKEN",
    "INGRESS_TOKEN_FILE": "the one in the file of INGRESS_TOKEN_FILE",
    "INGRESS_ALLOW_UNSIGNED": "none: anybody who reaches the ingress may post rewards",
}
"""Where the ingress has its token from when none is made up, and in which words that is told."""


class IsRunning(Exception):
    """Another ``ledger run`` owns the data directory."""


class DidNotStart(Exception):
    """A part ended before it was ready; it said why itself."""


class Running(NamedTuple):
    """What ``ledger run`` started."""

    ingress: str
    """Host and port of the ingress."""
    service: str
    """Host and port of the gRPC service."""
    made_up_token: Path | None
    """Where the development token is kept; ``None`` when one was given."""
    token: str
    """Where the token is, for a person; never the token."""
    data_directory: Path | None
    """Where ``LEDGER_DATA`` says, so that the next commands must say it too; else ``None``."""
    database: str
    """Which Postgres, for a person; never its URL, which may hold a password."""
    children: tuple[processes.Child, ...]

    def first_ended(self) -> processes.Child | None:
        """A child that has ended by itself, if any."""
        return next((c for c in self.children if c.process.poll() is not None), None)


@contextmanager
def running(settings: Settings, environment: Mapping[str, str]) -> Iterator[Running]:
    """Everything up and ready, for the time of the block; stopped in order afterwards.

    Raises ``IsRunning``, ``AddressTaken``, ``DidNotStart``, ``InvalidSetting`` or
    ``EmbeddedPostgresError``, and then leaves nothing running.
    """
    ingress = address(environment, "INGRESS_BIND", "127.0.0.1:8080")
    corrects = read_serve_settings(environment).corrects
    with ExitStack() as stack:
        stack.enter_context(_only_one(settings.data_directory))
        _end_leftovers(settings.data_directory)
        for bind in (ingress, settings.bind):
            check_free(bind)
        database = stack.enter_context(source(settings, must_own=True))
        migrate(database.url())
        token, made_up = _token(settings.data_directory, environment)
        common = {**environment, "INGRESS_BIND": ingress, "LEDGER_BIND": settings.bind}
        # The secrets of the door are the door's alone.
        door = {**common, "INGRESS_TOKEN": token} if token else common
        doors_own = ("INGRESS_", ENVIRONMENT_NAME)
        service = {name: common[name] for name in common if not name.startswith(doors_own)}
        children: list[processes.Child] = []
        stack.callback(lambda: processes.stop(children))
        for name, role, bind, told in (
            ("ingress", Role.WRITER, ingress, door),
            ("serve", Role.CORRECTOR if corrects else Role.READER, settings.bind, service),
        ):
            child = processes.start(name, [name], {**told, "DATABASE_URL": database.url(role)})
            children.append(child)
            _remember(settings.data_directory, children)
            _wait_until_ready(child, bind)
        where = "the one of DATABASE_URL"
        if database.embedded is not None:
            where = f"embedded, data in {database.embedded.data_directory}"
        is_elsewhere = database.embedded is not None and environment.get("LEDGER_DATA")
        elsewhere = settings.data_directory if is_elsewhere else None
        given = [words for name, words in _TOKENS_GIVEN.items() if environment.get(name)]
        token_words = f"made up, kept in {made_up}" if made_up else given[0]
        yield Running(
            ingress, settings.bind, made_up, token_words, elsewhere, where, tuple(children)
        )


def wait(started: Running) -> processes.Child | None:
    """Return at SIGINT or SIGTERM, or with a child that ended by itself."""
    asked = processes.asked_to_end()
    while not asked:
        if (ended := started.first_ended()) is not None:
            return ended
        time.sleep(0.3)
    return None


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "run.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise IsRunning(_owner(lock)) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _owner(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.read(20).strip() or "?"


def _remember(directory: Path, children: list[processes.Child]) -> None:
    """Keep who our children are, for the run after one that is killed."""
    text = json.dumps([child.identity() for child in children])
    _write(directory / "children.json", text)


def _end_leftovers(directory: Path) -> None:
    try:
        leftovers = json.loads((directory / "children.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return
    for identity in leftovers:
        processes.end_leftover(identity)
    (directory / "children.json").unlink()


def _token(directory: Path, environment: Mapping[str, str]) -> tuple[str | None, Path | None]:
    """The token that was given, or one that is made up once and kept for this machine's use."""
    if any(environment.get(name) for name in _TOKENS_GIVEN):
        return environment.get("INGRESS_TOKEN"), None
    path = directory / "development-token"
    if not path.exists():
        _write(path, secrets.token_urlsafe(24))
    return path.read_text(), path


def _write(path: Path, text: str) -> None:
    """Write a file of its owner's alone, wholly or not at all, also when we are killed."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _wait_until_ready(child: processes.Child, bind: str) -> None:
    host, _, port = bind.rpartition(":")
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline:
        if child.process.poll() is not None:
            raise DidNotStart(child.name)
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise DidNotStart(child.name)


__all__ = ["AddressTaken", "DidNotStart", "IsRunning", "Running", "running", "wait"]
