"""What an export says of itself: each file by its digest, and the totals of its currencies.

A file is there under its name only when it is whole and on disk. While an export is under way it
keeps its state in a second such file, from which another process can go on.
"""

import hashlib
import io
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

MANIFEST = "manifest.json"
STATE = "unfinished.json"
WRITING = ".writing"
"""How the name of a file ends that is not whole yet."""


class Wanted(msgspec.Struct, frozen=True):
    """Which export is asked for."""

    format: str
    start: str | None = msgspec.field(default=None, name="from")
    """Postings from this time on, in ISO 8601; ``None``: from the first."""
    end: str | None = msgspec.field(default=None, name="to")
    """Postings before this time; ``None``: to the last."""
    part_rows: int = 1_000_000
    """How many postings a file holds at most."""


class Snapshot(msgspec.Struct, frozen=True):
    """Where the books stood; all that was committed until then is in it, and nothing else."""

    taken_at: str
    last_commit_position: int
    last_reward_number: int
    """Of the last commit."""
    last_committed_at: str | None


class Total(msgspec.Struct):
    """One currency's control totals: what was written, and what the accounts' balances say."""

    currency: str
    postings: int = 0
    debits: str = "0"
    credits: str = "0"
    books_postings: int = 0
    books_debits: str = "0"
    books_credits: str = "0"

    def agrees(self) -> bool:
        """Whether the postings written are those that the balances follow from, by their sums."""
        written = (self.postings, Decimal(self.debits), Decimal(self.credits))
        books = (self.books_postings, Decimal(self.books_debits), Decimal(self.books_credits))
        return written == books


class File(msgspec.Struct, frozen=True):
    """A file of an export."""

    name: str
    rows: int
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """The last file of an export: while it is not there, the export is not whole."""

    wanted: Wanted
    snapshot: Snapshot
    amounts: str
    """How amounts are written."""
    postings: int
    balances: int
    """Accounts, in each of their currencies."""
    agrees: bool
    """Whether all totals agree; if not, the books do not hold."""
    totals: list[Total]
    files: list[File]


class NewFile(io.RawIOBase):
    """A file that is given its name by ``keep``, when everything in it is on disk."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._writing = path.with_name(path.name + WRITING)
        self._file = self._writing.open("wb", buffering=1 << 20)
        self._digest = hashlib.sha256()
        self._size = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401 - whatever has bytes
        """Append ``data``, all of it."""
        self._digest.update(data)
        written = self._file.write(data)
        self._size += written
        return written

    def keep(self, rows: int) -> File:
        """Give it its name; whoever finds it under that name finds it whole."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._writing.replace(self._path)
        _sync_directory(self._path.parent)
        self.close()
        return File(self._path.name, rows, self._size, self._digest.hexdigest())

    def close(self) -> None:
        """Write no more; without ``keep`` it never gets its name."""
        self._file.close()
        super().close()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: msgspec.Struct) -> None:
    """Put ``value`` at ``path``, whole or not at all, for a person to read too."""
    with NewFile(path) as file:
        file.write(msgspec.json.format(msgspec.json.encode(value)) + b"\n")
        file.keep(1)


def is_as_written(directory: Path, file: File) -> bool:
    """Whether ``file`` holds every byte that was written into it."""
    try:
        with (directory / file.name).open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
    except FileNotFoundError:
        return False
