"""The spool's place on disk: made once, opened with its promises checked, never begun anew."""

import errno
import fcntl
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from ledger.errors import Unavailable

FILE_NAME = "spool.sqlite3"
PAGE_BYTES = 4096
LOG_BYTES_MAX = 8 * 1024 * 1024
_FRAME_HEADER_BYTES = 24
"""What the log adds to each page."""
BUSY_SECONDS_MAX = 1.0
"""How long one worker waits while another one writes."""

_APPLICATION_ID = 0x52577370
_VERSION = 1
_SCHEMA = f"""
PRAGMA page_size = {PAGE_BYTES};
PRAGMA auto_vacuum = INCREMENTAL;
CREATE TABLE deliveries (
    -- Never used again: whoever removes late must not meet another delivery under an old number.
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    received_at TEXT NOT NULL,
    token TEXT,
    form TEXT,
    tries INTEGER NOT NULL DEFAULT 0,
    refusal TEXT,
    -- The same text is kept once, or whoever resends one could fill the disk.
    digest BLOB NOT NULL UNIQUE,
    text BLOB NOT NULL
);
-- How many are set aside?
CREATE INDEX set_aside ON deliveries (number) WHERE refusal IS NOT NULL;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
PRAGMA journal_mode = WAL;
"""

_SETTINGS = f"""
PRAGMA busy_timeout = {BUSY_SECONDS_MAX * 1000:.0f};
PRAGMA synchronous = FULL;
PRAGMA fullfsync = ON;
PRAGMA secure_delete = ON;
"""

_CHECKS = {
    "application_id": _APPLICATION_ID,
    "user_version": _VERSION,
    "journal_mode": "wal",
    "synchronous": 2,
    "secure_delete": 1,
    "busy_timeout": round(BUSY_SECONDS_MAX * 1000),
    # Reads the whole file: nearly empty when everything that waited is posted and nothing is set
    # aside, and never over the spool's bound.
    "quick_check": "ok",
}
"""What must be so when a spool is opened, asked in this order. In WAL mode only ``FULL``, which is
2, syncs each commit."""


class UnusableSpool(Exception):
    """The directory or its file cannot serve as a spool; the text says which, and why."""


class UnwritableSpool(UnusableSpool):
    """The place may not be written by this user, or its disk can only be read."""


class SpoolUnavailable(Unavailable):
    """The spool cannot be read or written now; what was put is not promised to be there."""


class SpoolFull(SpoolUnavailable):
    """The spool has reached its bound, or the disk is full; nothing was put."""


@contextmanager
def translated() -> Iterator[None]:
    """Our errors for those of SQLite and of the system, by their codes."""
    try:
        yield
    except sqlite3.Error as error:
        is_full = _code(error) == sqlite3.SQLITE_FULL
        raise (SpoolFull if is_full else SpoolUnavailable) from error
    except OSError as error:
        is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise (SpoolFull if is_full else SpoolUnavailable) from error


def connect(directory: Path, size_max_bytes: int) -> sqlite3.Connection:
    """The open file of ``directory``; both are made if they are not there.

    Commits by itself, unless a database transaction is begun. Raises ``UnusableSpool`` for what
    somebody must mend, else what SQLite and the system raise.
    """
    path = directory / FILE_NAME
    try:
        _make_private(directory)
        if not path.exists():
            _create(path)
        if not os.access(path, os.W_OK):
            raise PermissionError
    except OSError as error:
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise UnwritableSpool(f"{directory} cannot be written by this user") from error
        raise
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    # One damaged name must not keep back what waits behind it.
    connection.text_factory = lambda kept: kept.decode(errors="replace")
    try:
        connection.executescript(_SETTINGS)
        log_pages = log_share_bytes(size_max_bytes) // 4 // PAGE_BYTES
        connection.execute(f"PRAGMA wal_autocheckpoint = {log_pages}")
        for name, expected in _CHECKS.items():
            found = connection.execute(f"PRAGMA {name}").fetchone()[0]
            if found != expected:
                raise UnusableSpool(f"{path}: {name} is {found}, not {expected}; {_HELP}")
    except sqlite3.Error as error:
        connection.close()
        if _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise UnusableSpool(f"{path} is damaged ({error}); {_HELP}") from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def identity(directory: Path) -> tuple[int, int]:
    """What tells the spool's file from any other that has its name later."""
    found = (directory / FILE_NAME).stat()
    return found.st_dev, found.st_ino


def size_bytes(directory: Path, suffix: str) -> int:
    """How large a file of the spool is: the database (no suffix), its ``-wal`` or its ``-shm``."""
    try:
        return (directory / f"{FILE_NAME}{suffix}").stat().st_size
    except FileNotFoundError:
        return 0


def require_room(
    connection: sqlite3.Connection, directory: Path, lengths: Sequence[int], size_max_bytes: int
) -> None:
    """Raise ``SpoolFull`` when texts of these ``lengths`` could take the files over the bound.

    What is written takes its room in the log, and in the database when it is copied there. The
    database leaves the log its share: with none, nothing could be put where rows were removed.
    To be asked in the database transaction that writes: then nobody else does.
    """
    # For each its leaf, its place in the index and that one's split; the text, page by page.
    pages = 8 + sum(3 + length // 4000 for length in lengths)
    in_database = one(connection, "PRAGMA page_count")
    in_database += max(0, pages - one(connection, "PRAGMA freelist_count"))
    log_bytes = size_bytes(directory, "-wal") + size_bytes(directory, "-shm")
    log_bytes += pages * (PAGE_BYTES + _FRAME_HEADER_BYTES)
    share = log_share_bytes(size_max_bytes)
    if in_database * PAGE_BYTES + max(share, log_bytes) > size_max_bytes:
        raise SpoolFull


def log_share_bytes(size_max_bytes: int) -> int:
    """How much of the bound is for the log."""
    return min(LOG_BYTES_MAX, size_max_bytes // 2)


def transact(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], object]) -> None:
    """Do ``work`` in one database transaction; on disk when it returns."""
    with translated():
        connection.execute("BEGIN IMMEDIATE")
        try:
            work(connection)
            connection.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after some errors.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def one(connection: sqlite3.Connection, statement: str) -> int:
    """The one number that ``statement`` gives."""
    return int(connection.execute(statement).fetchone()[0])


@contextmanager
def lease(directory: Path) -> Iterator[bool]:
    """Whether the caller has ``directory`` for itself, for the time of the block.

    The kernel keeps the lease and takes it back when its holder dies, in whatever way. It is on
    the directory itself: a file for it could be left by one user and closed to the next.
    """
    with translated():
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        except BlockingIOError:
            is_ours = False
        yield is_ours
    finally:
        os.close(descriptor)


_HELP = (
    "it may hold rewards that were answered 200, so it is left as it is:"
    " move it away to begin a new one, and recover its rows"
)


def _make_private(directory: Path) -> None:
    try:
        made = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Else a machine that dies may have lost the directory with all that was put in it.
        for path in made:
            _sync(path.parent)
    except (FileExistsError, NotADirectoryError) as error:
        raise UnusableSpool(f"{directory} is not a directory") from error
    found = directory.stat()
    if os.geteuid() not in {0, found.st_uid}:
        raise UnusableSpool(f"{directory} belongs to another user")
    if found.st_mode & 0o077:
        raise UnusableSpool(f"{directory} is open to other users; close it: chmod 700")


def _create(path: Path) -> None:
    """Make an empty spool under another name, then link it: it is there whole, or not at all."""
    if size_bytes(path.parent, "-wal"):
        raise UnusableSpool(f"{path} is gone, but its log {path}-wal is there; {_HELP}")
    descriptor, name = tempfile.mkstemp(prefix="creating-", dir=path.parent)
    os.close(descriptor)
    try:
        with closing(sqlite3.connect(name, isolation_level=None)) as connection:
            connection.executescript(_SCHEMA)
        # Another worker may have been first; then its file is the spool.
        with suppress(FileExistsError):
            os.link(name, path)
    finally:
        Path(name).unlink()
    _sync(path.parent)


def _sync(directory: Path) -> None:
    """Have what ``directory`` lists on disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for an error of Python's module itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
