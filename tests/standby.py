"""A standby: a real Postgres that follows the tests' own, by its log, as far as it is let."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from ledger.embedded import EmbeddedPostgres
from tests.conftest import SUPERUSER

SETTINGS = """
restore_command = 'cp "{log}/%f" "%p" 2>/dev/null'
wal_retrieve_retry_interval = 50ms
"""


@contextmanager
def standby_of(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EmbeddedPostgres]:
    """It has what ``postgres`` has, and gets what is written there from the files of its log."""
    # It can change nothing, and has all roles.
    monkeypatch.setattr(
        "ledger.embedded.postgres.prepare_roles_and_database", lambda _connection: None
    )
    with tempfile.TemporaryDirectory(prefix="ledger-tests-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        standby = EmbeddedPostgres(Path(name))
        _copy(postgres, standby.data_directory)
        with standby:
            yield standby


def _copy(postgres: EmbeddedPostgres, folder: Path) -> None:
    """https://www.postgresql.org/docs/18/continuous-archiving.html, without the log."""
    data = postgres.data_directory
    with psycopg.connect(postgres.url(SUPERUSER, "postgres"), autocommit=True) as connection:
        connection.execute("SELECT pg_backup_start('standby', fast => true)")
        # A file may vanish meanwhile, as the manual says.
        subprocess.run(["cp", "-a", data, folder], stderr=subprocess.DEVNULL, check=False)
        ((label,),) = connection.execute("SELECT labelfile FROM pg_backup_stop(false)")
    shutil.rmtree(folder / "pg_wal")
    (folder / "postmaster.pid").unlink()
    settings = (folder / "postgresql.auto.conf").read_text() + SETTINGS.format(log=data / "pg_wal")
    for name, text in (
        ("pg_wal", None),
        ("backup_label", label),
        ("standby.signal", ""),
        ("postgresql.auto.conf", settings),
    ):
        path = folder / name
        if text is None:
            path.mkdir(mode=0o700)
        else:
            path.write_text(text)
        os.chown(path, folder.stat().st_uid, folder.stat().st_gid)
