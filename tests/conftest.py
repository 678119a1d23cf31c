"""What every test stands on: one real Postgres, and a database of its own for each test."""

import atexit
import functools
import itertools
import os
import random
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import uvloop

from ledger.database import STATEMENT_SECONDS_MAX, Connection, Role, conninfo
from ledger.embedded import EmbeddedPostgres
from ledger.operations.migrate import migrate

# What the caller's shell says of a ledger must not reach the tests.
for _name in [name for name in os.environ if name.startswith(("INGRESS_", "LEDGER_", "PG"))]:
    del os.environ[_name]
os.environ.pop("DATABASE_URL", None)

# Who runs the tests in the background may have had Ctrl-C ignored, and whatever is started inherits
# that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MEMORY = Path("/dev/shm")
MEMORY_FREE_MIN_BYTES = 4 * 2**30


def _has_room(directory: Path) -> bool:
    """Whether ``directory`` can hold all the files of a run, and programs may be run from it."""
    if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
        return False
    told = os.statvfs(directory)
    return told.f_bavail * told.f_frsize > MEMORY_FREE_MIN_BYTES and not (
        told.f_flag & os.ST_NOEXEC
    )


# Databases are made and dropped by the hundred. On a disk that costs a third of the whole run:
# ext4 searches long for the place of a new file among those that were deleted a moment ago.
if "TMPDIR" not in os.environ and _has_room(MEMORY):
    os.environ["TMPDIR"] = str(MEMORY)
    tempfile.tempdir = None

OWNER = "ledger_owner"
SUPERUSER = "postgres"


class Database(NamedTuple):
    """A migrated database that only this test uses."""

    postgres: EmbeddedPostgres
    name: str

    def url(self, role: str = OWNER) -> str:
        """Where ``role`` logs in."""
        return self.postgres.url(role, self.name)

    @asynccontextmanager
    async def connected(
        self, role: Role = Role.WRITER, *, is_service: bool = True
    ) -> AsyncIterator[Connection]:
        """A connection as the services open theirs, or as an operator's command does."""
        seconds = STATEMENT_SECONDS_MAX if is_service else 60
        info = conninfo(self.url(role), role, statement_seconds_max=seconds, is_service=is_service)
        async with await psycopg.AsyncConnection.connect(info, autocommit=True) as connection:
            yield connection

    def rows(self, query: str, role: str = OWNER) -> list[tuple[Any, ...]]:
        """What ``query`` gives, committed; nothing for a statement without rows."""
        with psycopg.connect(self.url(role), autocommit=True) as connection:
            cursor = connection.execute(query)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []


@functools.cache
def _initialised() -> Path:
    """A directory in which a server was once started, migrated and stopped."""
    kept = tempfile.TemporaryDirectory(prefix="ledger-tests-", ignore_cleanup_errors=True)
    atexit.register(kept.cleanup)
    path = Path(kept.name)
    path.chmod(0o711)
    with EmbeddedPostgres(path) as server:
        migrate(server.url(OWNER))
    return path


def initialise(directory: Path) -> None:
    """Make ``directory`` one in which a server was started, migrated and stopped before.

    A copy: making the first one takes longer than most tests.
    """
    subprocess.run(["/bin/cp", "-a", f"{_initialised()}/.", directory], check=True)


@contextmanager
def throw_away_postgres() -> Iterator[EmbeddedPostgres]:
    """A migrated server with empty books, gone afterwards; also to be stopped and killed before.

    It does not wait for the disk, which would take much of the whole run: what is killed here are
    processes, and what they have written then is in the system's hands.
    """
    with tempfile.TemporaryDirectory(prefix="ledger-tests-", ignore_cleanup_errors=True) as name:
        initialise(Path(name))
        with EmbeddedPostgres(Path(name)) as server:
            url = server.url(SUPERUSER, "postgres")
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET fsync = off")
                connection.execute("SELECT pg_reload_conf()")
            yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The one server of the whole run."""
    with throw_away_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """The name of a migrated database that nobody connects to, to be cloned."""
    with psycopg.connect(postgres.url(OWNER, "postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE ledger_template TEMPLATE ledger")
    return "ledger_template"


_numbers = itertools.count(1)


@contextmanager
def cloned(postgres: EmbeddedPostgres, template: str) -> Iterator[Database]:
    """A database that is cloned from the template, and dropped afterwards."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres.url(SUPERUSER, "postgres"), autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE {template} OWNER {OWNER} STRATEGY file_copy"
        )
        yield Database(postgres, name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(postgres: EmbeddedPostgres, template: str) -> Iterator[Database]:
    """A database of this test's own."""
    with cloned(postgres, template) as database:
        yield database


Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def run() -> Run:
    """Runs a coroutine on uvloop, as the services do."""
    return uvloop.run


@pytest.fixture
def chance() -> random.Random:
    """Random numbers that can be had again: pytest shows the seed when the test fails."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().getrandbits(32))
    print(f"SEED={seed}")
    return random.Random(seed)
