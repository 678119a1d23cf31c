"""Believed deliveries on this machine's disk, until the books can be reached.

One SQLite database for all workers of the machine, in a directory of its own. It holds personal
data: it is for one user of the system only, and what is removed is overwritten.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self

from ingress.spool_file import (
    FILE_NAME,
    SpoolFull,
    SpoolUnavailable,
    connect,
    identity,
    log_share_bytes,
    one,
    require_room,
    size_bytes,
    transact,
    translated,
)
from ledger.database import WrongProcess

OLDEST_BYTES_MAX = 1024 * 1024
"""After how much text ``Spool.oldest`` stops, however many were asked for."""

ROOM_BYTES = 64 * 1024
"""What ``Spool.has_room`` takes for a large text."""

LONG_AGO = datetime.fromtimestamp(0, UTC)

_EMPTY_LOG = "PRAGMA wal_checkpoint(TRUNCATE)"

_PUT = """
INSERT INTO deliveries (received_at, token, form, digest, text) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (digest) DO UPDATE SET
    token = excluded.token, form = excluded.form, text = excluded.text, tries = 0, refusal = NULL
WHERE refusal IS NOT NULL OR text <> excluded.text
"""


class Delivery(NamedTuple):
    """A believed delivery, and which token and form of the body vouched for it."""

    text: bytes
    token: str | None
    form: str | None
    received_at: datetime
    """Aware."""


class Waiting(NamedTuple):
    """A delivery in the spool."""

    number: int
    """The order of arrival."""
    tries: int
    """How often it was handed to the books and its outcome stayed unknown."""
    is_whole: bool
    """Whether the text is, bit for bit, the one that was put."""
    delivery: Delivery


class SpoolStatus(NamedTuple):
    """What an operator wants to know of a spool."""

    depth: int
    """How many wait."""
    set_aside: int
    """How many were refused by the books and are kept nowhere else."""
    size_bytes: int
    """On the disk, the log included."""
    oldest_age_seconds: float | None
    """Of those that wait."""


class Spool:
    """Deliveries in the order of their arrival, on disk, shared by all workers of the machine.

    ``open`` it in the process that uses it, after the fork; then every thread of that process may
    call it. Every method raises ``SpoolUnavailable`` when the file or the disk says no, or when
    the file is no longer in its place; and ``WrongProcess`` in another process: SQLite's locks do
    not survive a fork.
    """

    def __init__(self, directory: Path, size_max_bytes: int) -> None:
        self.directory = directory
        self._size_max_bytes = size_max_bytes
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._process_id: int | None = None

    def exists(self) -> bool:
        """Whether there is a spool in the directory; ``open`` makes one."""
        return (self.directory / FILE_NAME).exists()

    def open(self) -> None:
        """Open it, or do nothing when it is open and its file is in its place.

        A file that was moved away is let go, and what has its place now is opened. Raises
        ``UnusableSpool`` for what somebody must mend first, and ``SpoolUnavailable`` for what may
        pass, such as a full disk.
        """
        if self._process_id not in {None, os.getpid()}:
            raise WrongProcess
        with self._lock, translated():
            if self._connection is not None and not self._is_in_place():
                # SQLite neither empties nor removes the log of a file that was moved.
                self._connection.close()
                self._connection = None
            if self._connection is None:
                self._connection = connect(self.directory, self._size_max_bytes)
                self._identity = identity(self.directory)
                self._process_id = os.getpid()

    @property
    def is_open(self) -> bool:
        """Whether it was opened and not closed since."""
        return self._connection is not None

    def close(self) -> None:
        """Close it; may be repeated."""
        with self._lock:
            if self._connection is not None and self._process_id == os.getpid():
                self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, deliveries: Sequence[Delivery]) -> None:
        """Put ``deliveries`` in one database transaction; returns when they are on disk.

        A text that is there already is not put again; but one that was damaged on disk or set
        aside is whole afterwards, and waits in its old place as if it were new. Raises
        ``SpoolFull`` when they have no room; after any other ``SpoolUnavailable`` they may be
        there nevertheless.
        """
        rows = [
            (received_at.isoformat(), token, form, sha256(text).digest(), text)
            for text, token, form, received_at in deliveries
        ]

        def put(connection: sqlite3.Connection) -> None:
            lengths = [len(delivery.text) for delivery in deliveries]
            require_room(connection, self.directory, lengths, self._size_max_bytes)
            connection.executemany(_PUT, rows)

        self._change(put)

    def has_room(self) -> bool:
        """Whether a usual delivery could be put now, by the bound and by what the disk has left."""
        with self._opened() as connection:
            disk = os.statvfs(self.directory)
            try:
                require_room(connection, self.directory, [ROOM_BYTES], self._size_max_bytes)
            except SpoolFull:
                return False
            return disk.f_bavail * disk.f_frsize > 2 * ROOM_BYTES

    def oldest(self, limit: int, after: int = 0) -> list[Waiting]:
        """The oldest that wait behind the number ``after``; what is set aside does not wait.

        Fewer than ``limit`` when their texts are large, but never none while one waits.
        """
        found: list[Waiting] = []
        found_bytes = 0
        with self._opened() as connection:
            rows = connection.execute(
                "SELECT number, tries, digest, text, token, form, received_at FROM deliveries"
                " WHERE refusal IS NULL AND number > ? ORDER BY number LIMIT ?",
                (after, limit),
            )
            with closing(rows):
                for number, tries, digest, kept, token, form, received_at in rows:
                    text = kept if isinstance(kept, bytes) else str(kept).encode()
                    delivery = Delivery(text, _name(token), _name(form), _time(received_at))
                    is_whole = sha256(text).digest() == digest
                    tried = tries if isinstance(tries, int) else 0
                    found.append(Waiting(number, tried, is_whole, delivery))
                    found_bytes += len(text)
                    if found_bytes > OLDEST_BYTES_MAX:
                        break
        return found

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove what stands in the books now, or is kept elsewhere."""
        self._change_each("DELETE FROM deliveries WHERE number = ?", [(n,) for n in numbers])
        with self._opened() as connection:
            if one(connection, "SELECT NOT EXISTS (SELECT 1 FROM deliveries)"):
                # As a script: alone, Python's module would do but one step of it.
                connection.executescript("PRAGMA incremental_vacuum")
                connection.execute(_EMPTY_LOG).fetchall()

    def note_tries(self, numbers: Sequence[int]) -> None:
        """Count one more try of each, the outcome of which stayed unknown."""
        statement = "UPDATE deliveries SET tries = tries + 1 WHERE number = ?"
        self._change_each(statement, [(number,) for number in numbers])

    def set_aside(self, number: int, refusal: str) -> None:
        """Let it wait no longer: it stays, with the name of its refusal."""
        statement = "UPDATE deliveries SET refusal = ? WHERE number = ?"
        self._change_each(statement, [(refusal, number)])

    def recall(self) -> None:
        """Let everything that was set aside wait again, each in its old place."""
        statement = "UPDATE deliveries SET refusal = NULL WHERE refusal IS NOT NULL"
        self._change_each(statement, [()])

    def status(self) -> SpoolStatus:
        """How many wait and are set aside, how large it is, how long the oldest has waited."""
        with self._opened() as connection:
            # From the smallest index: the table's own pages hold the texts.
            count = one(connection, "SELECT count(*) FROM deliveries")
            set_aside = one(connection, "SELECT count(*) FROM deliveries WHERE refusal IS NOT NULL")
            oldest = connection.execute(
                "SELECT received_at FROM deliveries WHERE refusal IS NULL ORDER BY number LIMIT 1"
            ).fetchone()
            size = sum(size_bytes(self.directory, suffix) for suffix in ("", "-wal", "-shm"))
        age = None
        if oldest:
            waited = datetime.now(UTC) - _time(oldest[0])
            age = max(0.0, waited.total_seconds())
        return SpoolStatus(count - set_aside, set_aside, size, age)

    def _change_each(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        self._change(lambda connection: connection.executemany(statement, rows))

    def _change(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Do ``work`` in one transaction, once more if a checkpoint may have made room."""
        with self._opened() as connection:
            if size_bytes(self.directory, "-wal") > log_share_bytes(self._size_max_bytes) // 2:
                connection.execute(_EMPTY_LOG).fetchall()
            try:
                transact(connection, work)
            except SpoolFull:
                connection.execute(_EMPTY_LOG).fetchall()
                transact(connection, work)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        if self._process_id not in {None, os.getpid()}:
            raise WrongProcess
        with self._lock, translated():
            # A file that was removed or moved still takes what is written, for nobody to find.
            if self._connection is None or not self._is_in_place():
                raise SpoolUnavailable
            yield self._connection

    def _is_in_place(self) -> bool:
        try:
            return identity(self.directory) == self._identity
        except (FileNotFoundError, NotADirectoryError):
            return False


def _name(kept: object) -> str | None:
    return None if kept is None else str(kept)


def _time(kept: object) -> datetime:
    """When a delivery arrived; the beginning of time where that was damaged on disk."""
    try:
        told = datetime.fromisoformat(str(kept))
    except ValueError:
        return LONG_AGO
    return told if told.tzinfo else LONG_AGO
