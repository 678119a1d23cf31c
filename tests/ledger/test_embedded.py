"""The embedded Postgres, against the real thing: real servers, real signals, real users."""

import contextlib
import getpass
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

import ledger
from ledger.embedded import (
    AlreadyRunning,
    AnotherVersionsData,
    DidNotStart,
    EmbeddedPostgres,
    EmbeddedPostgresError,
    NoUsablePlace,
)
from ledger.embedded.home import (
    FALLBACK,
    INSTALLATION,
    NOTE_NAME,
    PACKAGE,
    SystemUser,
    find_home,
    installation,
    reachable_installation,
)

REPOSITORY = Path(ledger.__file__).resolve().parents[1]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")

# Runs a server until it is killed; says so once the server answers.
SUPERVISOR = """
import sys, time
from pathlib import Path
from ledger.embedded import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])):
    print("started", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that every user can reach, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="embedded-")).resolve()
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def stopped() -> Iterator[Path]:
    """A directory in which a server was started and stopped; tests get copies of it."""
    path = Path(tempfile.mkdtemp(prefix="embedded-")).resolve()
    path.chmod(0o755)
    with EmbeddedPostgres(path):
        pass
    yield path
    shutil.rmtree(path)


@pytest.fixture
def used(stopped: Path, directory: Path) -> Path:
    """A directory that holds a stopped server's data: initdb takes most of a first start."""
    subprocess.run(["/bin/cp", "-a", f"{stopped}/.", directory], check=True)
    return directory


@pytest.fixture
def embed() -> Iterator[Callable[[Path], EmbeddedPostgres]]:
    """Make embedded servers that are stopped, and their fallback removed, after the test."""
    made: list[EmbeddedPostgres] = []

    def make(wished: Path) -> EmbeddedPostgres:
        made.append(EmbeddedPostgres(wished))
        return made[-1]

    yield make
    for postgres in made:
        postgres.stop()
    for postgres in made:
        with contextlib.suppress(NoUsablePlace):
            if postgres.data_directory.is_relative_to(FALLBACK):
                shutil.rmtree(postgres.data_directory.parent, ignore_errors=True)
    with contextlib.suppress(OSError):
        FALLBACK.rmdir()


@pytest.fixture(scope="module")
def shared() -> Iterator[EmbeddedPostgres]:
    """One server for the tests that only ask."""
    path = Path(tempfile.mkdtemp(prefix="embedded-")).resolve()
    path.chmod(0o755)
    with EmbeddedPostgres(path) as postgres:
        yield postgres
    shutil.rmtree(path)


def postmaster_of(postgres: EmbeddedPostgres) -> psutil.Process:
    text = (postgres.data_directory / "postmaster.pid").read_text()
    return psutil.Process(int(text.splitlines()[0]))


def kill_everything_of(postgres: EmbeddedPostgres) -> None:
    postmaster = postmaster_of(postgres)
    for process in (postmaster, *postmaster.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def commit_a_row(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url("ledger_owner")) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")


def the_row_is_there(postgres: EmbeddedPostgres) -> bool:
    with psycopg.connect(postgres.url("ledger_owner")) as connection:
        return connection.execute("SELECT number FROM kept").fetchone() == (7,)


def value(postgres: EmbeddedPostgres, role: str, statement: str) -> object:
    with psycopg.connect(postgres.url(role)) as connection:
        row = connection.execute(statement).fetchone()  # type: ignore[call-overload]
        return row[0]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


NOBODY = SystemUser("nobody", pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid)


def import_paths() -> list[str]:
    return [str(REPOSITORY), str(Path(psycopg.__file__).parents[1])]


def python_for(user: SystemUser) -> str | None:
    """The venv's Python, or one of the same version that this user can reach."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    script = "import sys; sys.path[:0] = sys.argv[1:]; import psycopg, psutil, ledger.embedded"
    for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        with contextlib.suppress(OSError):
            if user.run([candidate, "-c", script, *import_paths()]).returncode == 0:
                return candidate
    return None


# What a server gives.


def test_a_started_server_answers_as_postgresql_18_in_utf8_with_c_collation(directory, embed):
    postgres = embed(directory)
    postgres.start()
    assert value(postgres, "ledger_reader", "SHOW server_version").startswith("18.")
    assert value(postgres, "ledger_reader", "SHOW server_encoding") == "UTF8"
    assert value(postgres, "ledger_reader", "SHOW data_checksums") == "on"
    collation = "SELECT datcollate FROM pg_database WHERE datname = current_database()"
    assert value(postgres, "ledger_reader", collation) == "C"


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("jit", "off"),
        ("checkpoint_timeout", "30min"),
        ("max_wal_size", "8GB"),
        ("max_connections", "100"),
        ("TimeZone", "UTC"),
        ("listen_addresses", ""),
        ("log_statement", "none"),
        ("log_min_error_statement", "panic"),
        ("log_parameter_max_length_on_error", "0"),
    ],
)
def test_the_setting_is_as_promised(shared, setting, wanted):
    assert value(shared, "ledger_reader", f"SHOW {setting}") == wanted


def test_no_process_of_the_server_listens_on_tcp(shared):
    postmaster = postmaster_of(shared)
    assert postmaster.net_connections(kind="inet") == []
    for process in postmaster.children(recursive=True):
        # A worker of autovacuum may have ended since it was found.
        with contextlib.suppress(psutil.NoSuchProcess):
            assert process.net_connections(kind="inet") == []


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(shared):
    postmaster = postmaster_of(shared).pid
    assert os.getsid(postmaster) == postmaster
    assert os.getpgid(postmaster) == postmaster


def test_the_data_and_the_socket_are_private(shared):
    for private in (shared.data_directory, shared.data_directory.parent / "socket"):
        assert private.stat().st_mode & 0o777 == 0o700


def test_a_url_says_everything_that_the_environment_could_change(shared, monkeypatch):
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGHOST", "/nowhere")
    monkeypatch.setenv("PGUSER", "nobody")
    monkeypatch.setenv("PGDATABASE", "nothing")
    assert value(shared, "ledger_writer", "SELECT current_user::text") == "ledger_writer"


# Roles.


@pytest.mark.parametrize(
    ("role", "rights"),
    [
        ("ledger_owner", (True, False, True, True, False, False)),
        ("ledger_writer", (True, False, False, False, False, False)),
        ("ledger_reader", (True, False, False, False, False, False)),
    ],
)
def test_a_role_can_log_in_without_a_password_and_has_just_its_rights(shared, role, rights):
    statement = """
        SELECT rolcanlogin, rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls
        FROM pg_roles WHERE rolname = current_user
    """
    with psycopg.connect(shared.url(role)) as connection:
        assert connection.execute(statement).fetchone() == rights
        assert not connection.pgconn.used_password
    with psycopg.connect(shared.url("postgres")) as connection:
        passwords = connection.execute("SELECT count(rolpassword) FROM pg_authid").fetchone()
    assert passwords == (0,)


def test_the_owner_may_become_and_administer_the_other_roles_but_inherits_nothing(shared):
    statement = """
        SELECT roleid::regrole::text, admin_option, inherit_option, set_option
        FROM pg_auth_members WHERE member = 'ledger_owner'::regrole ORDER BY 1
    """
    with psycopg.connect(shared.url("ledger_owner")) as connection:
        assert connection.execute(statement).fetchall() == [
            ("ledger_closer", True, False, True),
            ("ledger_corrector", True, False, True),
            ("ledger_reader", True, False, True),
            ("ledger_writer", True, False, True),
        ]
        connection.execute("SET ROLE ledger_writer")


def test_the_owner_owns_the_database_and_may_make_others(shared):
    owner = "SELECT datdba::regrole::text FROM pg_database WHERE datname = 'ledger'"
    assert value(shared, "ledger_owner", owner) == "ledger_owner"
    with psycopg.connect(shared.url("ledger_owner"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE another")
        connection.execute("DROP DATABASE another")


def test_the_public_may_neither_enter_the_database_nor_create_in_it(shared):
    statement = """
        SELECT has_database_privilege('public', 'ledger', 'CONNECT')
            OR has_database_privilege('public', 'ledger', 'TEMPORARY')
            OR has_schema_privilege('public', 'public', 'CREATE')
    """
    assert value(shared, "ledger_reader", statement) is False


def test_a_changed_role_is_as_it_should_be_after_the_next_start(used, embed):
    postgres = embed(used)
    postgres.start()
    with psycopg.connect(postgres.url("postgres")) as connection:
        connection.execute("ALTER ROLE ledger_writer SUPERUSER PASSWORD 'x'")
        connection.execute("DROP OWNED BY ledger_reader")
        connection.execute("DROP ROLE ledger_reader")
        connection.execute("GRANT CONNECT ON DATABASE ledger TO PUBLIC")
    postgres.stop()
    postgres.start()
    rights = "SELECT rolsuper OR rolpassword IS NOT NULL FROM pg_authid WHERE rolname = '{}'"
    assert value(postgres, "postgres", rights.format("ledger_writer")) is False
    assert value(postgres, "ledger_reader", "SELECT 1") == 1
    public = "SELECT has_database_privilege('public', 'ledger', 'CONNECT')"
    assert value(postgres, "ledger_reader", public) is False


# Personal data.


def test_nothing_that_a_caller_says_reaches_the_log(used, embed):
    postgres = embed(used)
    postgres.start()
    with psycopg.connect(postgres.url("ledger_owner"), autocommit=True) as connection:
        connection.execute("CREATE TABLE named (name text PRIMARY KEY)")
        connection.execute("INSERT INTO named VALUES ('secret-name')")
        for statement in (
            "SELECT 'secret-name'::integer",
            "INSERT INTO named VALUES ('secret-name')",
            "SELECT 'secret-name' FROM nowhere",
        ):
            with pytest.raises(psycopg.Error):
                connection.execute(statement)
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT %s::text::integer", ["secret-name"])
    log = (postgres.data_directory / "server.log").read_text()
    assert "ready to accept connections" in log
    assert "secret-name" not in log


# Stopping and starting.


def test_data_and_address_survive_a_stop_and_a_start(used, embed):
    postgres = embed(used)
    postgres.start()
    commit_a_row(postgres)
    address = postgres.url("ledger_writer")
    postgres.stop()
    postgres.start()
    assert the_row_is_there(postgres)
    assert postgres.url("ledger_writer") == address


def test_stopping_ends_a_server_with_clients_that_are_busy(used, embed):
    postgres = embed(used)
    postgres.start()
    postmaster = postmaster_of(postgres)
    with psycopg.connect(postgres.url("ledger_owner")) as connection:
        connection.execute("CREATE TABLE unfinished ()")
        postgres.stop()
        assert not postmaster.is_running()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_stopping_twice_or_before_a_start_does_nothing(used, embed):
    postgres = embed(used)
    postgres.stop()
    postgres.start()
    postgres.stop()
    postgres.stop()
    assert not (postgres.data_directory / "postmaster.pid").exists()


def test_a_second_owner_of_one_directory_is_refused_and_the_first_goes_on(used, embed):
    first, second = embed(used), embed(used)
    first.start()
    with pytest.raises(AlreadyRunning):
        second.start()
    with pytest.raises(AlreadyRunning):
        first.start()
    assert value(first, "ledger_reader", "SELECT 1") == 1
    first.stop()
    second.start()
    assert value(second, "ledger_reader", "SELECT 1") == 1


def test_data_of_another_major_version_is_refused_and_left_as_it_was(used, embed):
    postgres = embed(used)
    postgres.start()
    postgres.stop()
    data = postgres.data_directory
    (data / "PG_VERSION").write_text("17\n")
    before = {path: path.lstat().st_mtime_ns for path in (data, *data.rglob("*"))}
    with pytest.raises(AnotherVersionsData, match="17"):
        embed(used).start()
    assert {path: path.lstat().st_mtime_ns for path in (data, *data.rglob("*"))} == before


def test_a_server_that_cannot_start_tells_its_last_words_and_leaves_nothing(used, embed):
    postgres = embed(used)
    postgres.start()
    postgres.stop()
    control = postgres.data_directory / "global" / "pg_control"
    control.rename(control.with_suffix(".away"))
    for _ in range(2):
        with pytest.raises(DidNotStart, match="pg_control"):
            postgres.start()
    control.with_suffix(".away").rename(control)
    postgres.start()
    assert value(postgres, "ledger_reader", "SELECT 1") == 1


def test_a_directory_with_something_else_in_it_is_refused(directory, embed):
    (directory / "data").mkdir()
    (directory / "data" / "letter").write_text("dear reader")
    with pytest.raises(EmbeddedPostgresError):
        embed(directory).start()
    assert (directory / "data" / "letter").read_text() == "dear reader"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write in every directory")
def test_a_directory_that_cannot_be_made_is_refused(directory, embed):
    directory.chmod(0o500)
    with pytest.raises(NoUsablePlace):
        embed(directory / "below").start()
    directory.chmod(0o755)


# Sudden ends.


def test_a_committed_row_survives_the_killing_of_every_process(used, embed):
    postgres = embed(used)
    postgres.start()
    commit_a_row(postgres)
    kill_everything_of(postgres)
    postgres.stop()
    postgres.start()
    assert the_row_is_there(postgres)


def test_a_server_whose_supervisor_was_killed_is_replaced(used, embed):
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, used],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    postgres = embed(used)
    with supervisor:
        assert supervisor.stdout.readline() == "started\n"
        commit_a_row(postgres)
        left_behind = postmaster_of(postgres)
        supervisor.kill()
    assert left_behind.is_running()
    postgres.start()
    assert not left_behind.is_running() or left_behind.status() == psutil.STATUS_ZOMBIE
    assert postmaster_of(postgres) != left_behind
    assert the_row_is_there(postgres)


def test_a_backend_that_outlived_its_postmaster_is_gone_after_a_start(used, embed):
    postgres = embed(used)
    postgres.start()
    commit_a_row(postgres)
    connection = psycopg.connect(postgres.url("ledger_owner"))
    with contextlib.closing(connection):
        backend = psutil.Process(connection.info.backend_pid)
        backend.suspend()
        postmaster_of(postgres).kill()
        assert backend.is_running()
        postgres.stop()
        postgres.start()
        assert not backend.is_running() or backend.status() == psutil.STATUS_ZOMBIE
    assert the_row_is_there(postgres)


@pytest.mark.parametrize("is_alive", [True, False], ids=["unrelated", "zombie"])
def test_a_pid_file_that_names_another_process_is_survived_and_so_is_the_process(
    used, embed, is_alive
):
    postgres = embed(used)
    postgres.start()
    commit_a_row(postgres)
    text = (postgres.data_directory / "postmaster.pid").read_text()
    kill_everything_of(postgres)
    postgres.stop()
    # As the server's own user: only then Postgres itself would believe the file.
    options = find_home(used).user.child_options()
    command = ["/bin/sleep", "600"] if is_alive else ["/bin/sh", "-c", ":"]
    other = subprocess.Popen(command, **options)
    try:
        if not is_alive:
            wait_until(lambda: psutil.Process(other.pid).status() == psutil.STATUS_ZOMBIE)
        pid_file = postgres.data_directory / "postmaster.pid"
        pid_file.write_text(text.replace(text.splitlines()[0], str(other.pid), 1))
        socket_lock = used / "socket" / ".s.PGSQL.5432.lock"
        socket_lock.parent.mkdir(mode=0o700)
        socket_lock.write_text(f"{other.pid}\n")
        postgres.start()
        assert the_row_is_there(postgres)
        if is_alive:
            assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_an_initialisation_that_was_killed_leaves_no_data_that_is_used(directory, embed):
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, directory], cwd=REPOSITORY)
    with supervisor:
        wait_until(lambda: any(directory.glob("initialising-*/PG_VERSION")))
        parent = psutil.Process(supervisor.pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    assert not (directory / "data").exists()
    postgres = embed(directory)
    postgres.start()
    assert value(postgres, "ledger_reader", "SELECT 1") == 1
    assert not any(directory.glob("initialising-*"))


# Places and users.


def test_a_path_too_long_for_a_socket_works_and_the_socket_is_still_private(directory, embed):
    postgres = embed(directory / ("long" * 30))
    postgres.start()
    assert value(postgres, "ledger_reader", "SELECT 1") == 1
    socket = Path(str(value(postgres, "postgres", "SHOW unix_socket_directories")).strip('"'))
    assert socket.stat().st_mode & 0o777 == 0o700
    assert not socket.is_relative_to(directory)
    postgres.stop()
    assert not socket.exists()


def test_a_path_with_characters_that_mean_something_elsewhere_works(directory, embed):
    postgres = embed(directory / 'it\'s "here", 100% ünïcode #1')
    postgres.start()
    assert value(postgres, "ledger_reader", "SELECT 1") == 1


def test_a_relative_directory_is_below_what_was_the_working_directory_when_it_was_given(
    directory, embed, monkeypatch
):
    monkeypatch.chdir(directory)
    postgres = embed(Path("below"))
    monkeypatch.chdir("/")
    postgres.start()
    assert postgres.data_directory == directory / "below" / "data"


@as_root
def test_no_process_of_a_server_that_root_started_runs_as_root(shared):
    postmaster = postmaster_of(shared)
    for process in (postmaster, *postmaster.children(recursive=True)):
        assert 0 not in process.uids()
        assert 0 not in process.gids()
    groups = Path(f"/proc/{postmaster.pid}/status").read_text().partition("Groups:")[2]
    assert groups.splitlines()[0].split() == []


@as_root
def test_an_unreachable_directory_works_and_nothing_above_it_is_opened(directory, embed):
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    wished = closed / "below"
    postgres = embed(wished)
    postgres.start()
    commit_a_row(postgres)
    assert closed.stat().st_mode & 0o777 == 0o700
    assert (closed.stat().st_uid, directory.stat().st_mode & 0o777) == (0, 0o755)
    assert postgres.data_directory.is_relative_to(FALLBACK)
    assert str(postgres.data_directory.parent) in (wished / NOTE_NAME).read_text()
    postgres.stop()
    again = embed(wished)
    again.start()
    assert the_row_is_there(again)


@as_root
def test_data_in_the_fallback_is_still_found_when_the_wished_directory_opens(directory, embed):
    directory.chmod(0o700)
    postgres = embed(directory)
    postgres.start()
    commit_a_row(postgres)
    postgres.stop()
    directory.chmod(0o755)
    again = embed(directory)
    again.start()
    assert the_row_is_there(again)


@as_root
def test_empty_books_are_not_begun_where_a_note_says_that_there_are_others(directory, embed):
    directory.chmod(0o700)
    postgres = embed(directory)
    postgres.start()
    postgres.stop()
    shutil.rmtree(postgres.data_directory.parent)
    with pytest.raises(NoUsablePlace, match=NOTE_NAME):
        embed(directory).start()


@as_root
def test_data_that_became_unreachable_is_refused_and_not_begun_anew(directory, embed):
    postgres = embed(directory / "below")
    postgres.start()
    postgres.stop()
    directory.chmod(0o700)
    with pytest.raises(NoUsablePlace, match="pass"):
        embed(directory / "below").start()


@as_root
def test_binaries_that_the_server_cannot_reach_are_run_from_a_copy(directory):
    closed = directory / "closed"
    shutil.copytree(installation(), closed / PACKAGE / INSTALLATION, symlinks=True)
    libraries = installation().parent.parent / f"{PACKAGE}.libs"
    if libraries.exists():
        shutil.copytree(libraries, closed / libraries.name)
    closed.chmod(0o700)
    user = find_home(directory).user
    copy = reachable_installation(closed / PACKAGE / INSTALLATION, user, directory / "copies")
    assert copy.is_relative_to(directory / "copies")
    assert user.run([copy / "bin" / "initdb", "--version"]).returncode == 0
    assert closed.stat().st_mode & 0o777 == 0o700
    again = reachable_installation(closed / PACKAGE / INSTALLATION, user, directory / "copies")
    assert again == copy
    assert not list((directory / "copies" / "binaries").glob("copying-*"))


@as_root
@pytest.mark.parametrize("name", ["nobody", "postgres", "daemon"])
def test_another_user_of_the_system_cannot_connect(shared, name):
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        pytest.skip(f"there is no user {name}")
    program = [find_home(shared.data_directory.parent).binaries / "psql", "-Atc", "SELECT 1"]
    for role in ("ledger_writer", "postgres"):
        other = SystemUser(name, entry.pw_uid, entry.pw_gid)
        refused = other.run([*program, shared.url(role)])
        assert (refused.returncode, refused.stdout) == (2, "")
        # Postgres lets its own user through to the socket, and then not in.
        words = ("Permission denied", "Peer authentication failed")
        assert any(word in refused.stderr for word in words)
        root = SystemUser("root", 0, 0)
        assert root.run([*program, shared.url(role)]).stdout == "1\n"


@as_root
def test_a_normal_user_starts_a_server_of_its_own(directory):
    python = python_for(NOBODY)
    if python is None:
        pytest.skip("the user nobody can reach no Python that has the dependencies")
    os.chown(directory, NOBODY.user_id, NOBODY.group_id)
    script = """
import sys; sys.path[:0] = sys.argv[2:]
from pathlib import Path
import psutil, psycopg
from ledger.embedded import EmbeddedPostgres
for _ in range(2):
    with EmbeddedPostgres(Path(sys.argv[1])) as postgres:
        with psycopg.connect(postgres.url("ledger_writer")) as connection:
            connection.execute("SELECT 1")
            print(psutil.Process(connection.info.backend_pid).username())
"""
    result = NOBODY.run([python, "-Wdefault", "-c", script, directory, *import_paths()])
    assert result.stderr == ""
    assert result.stdout.split() == ["nobody", "nobody"]


def test_the_server_runs_as_the_caller_unless_that_is_root(shared):
    is_the_caller = postmaster_of(shared).username() == getpass.getuser()
    assert is_the_caller == (os.geteuid() != 0)
