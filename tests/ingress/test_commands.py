"""``python -m ingress``, as a process: what goes wrong is said in one sentence, with status 1."""

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from ingress.mapping import Mapping
from ingress.spool import Delivery, Spool
from ledger.quarantine import Unposted, keep
from tests.conftest import OWNER, SUPERUSER, Database, Run
from tests.forked import run_command
from tests.ingress.deliveries import ABSENT, body
from tests.ledger.test_cli import ledger

NOWHERE = "postgresql://nobody@/nothing?host=/nonexistent"


def ingress(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_command("ingress", *arguments, **environment)


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence with which the command failed."""
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A spool in which one reward waits."""
    with Spool(tmp_path / "spool", 2**30) as spool:
        spool.put([Delivery(body(), "current", "raw", datetime.now(UTC))])
    return tmp_path / "spool"


def test_a_postgres_that_is_away_is_told_by_the_replay() -> None:
    done = ingress("quarantine-replay", DATABASE_URL=NOWHERE)
    assert said(done) == "Postgres refused (no connection): check DATABASE_URL."


def test_a_postgres_that_is_away_is_told_by_the_drain(spool: Path) -> None:
    settings = {"DATABASE_URL": NOWHERE, "INGRESS_SPOOL": str(spool)}
    done = ingress("spool-drain", **settings)
    assert said(done) == "The books cannot answer: DatabaseUnavailable."


@pytest.fixture
def no_books(database: Database) -> Iterator[str]:
    """Where there is a database, and nobody has migrated it."""
    name = f"{database.name}_empty"
    database.rows(f"CREATE DATABASE {name} OWNER {OWNER}", SUPERUSER)
    yield database.postgres.url(OWNER, name)
    with psycopg.connect(database.url(SUPERUSER), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_database_that_nobody_migrated_is_told(no_books: str) -> None:
    done = ingress("quarantine-replay", DATABASE_URL=no_books)
    assert said(done) == "The database holds no books yet: run `ledger migrate` first."


REFUSING = """
CREATE FUNCTION refusing() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE 'PRIVATE' USING ERRCODE = '53100', DETAIL = 'PRIVATE'; END $$;
CREATE TRIGGER refusing BEFORE UPDATE ON quarantine
FOR EACH STATEMENT EXECUTE FUNCTION refusing()
"""


def test_nothing_of_what_postgres_quotes_is_told(database: Database, run: Run) -> None:
    async def fill() -> None:
        async with database.connected() as connection:
            delivery = Unposted(body(), "UnknownCurrency", read_under=Mapping().digest)
            await keep(connection, [delivery])

    run(fill())
    database.rows(REFUSING)
    done = ingress("quarantine-replay", DATABASE_URL=database.url())
    assert said(done) == "Postgres refused (53100): check DATABASE_URL."


def test_an_embedded_postgres_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("9\n")
    done = ingress("quarantine-replay", LEDGER_DATA=str(tmp_path), DATABASE_URL="")
    assert said(done).startswith("The data in ")


def test_a_spool_that_is_not_set_is_told() -> None:
    assert said(ingress("spool-status")).startswith("INGRESS_SPOOL is not set")


def test_a_spool_that_cannot_be_used_is_told(spool: Path) -> None:
    (spool / "spool.sqlite3").write_bytes(b"a letter, not a database " * 1000)
    assert "spool.sqlite3 is damaged" in said(ingress("spool-status", INGRESS_SPOOL=str(spool)))


def test_a_spool_that_waits_is_shown_and_drained(spool: Path, database: Database) -> None:
    """With no more than what each needs: where the spool is, and where the books are."""
    where = {"INGRESS_SPOOL": str(spool)}
    lines = ledger(None, "spool", "status", **where).stdout.splitlines()
    shown = dict(line.split("\t") for line in lines)
    assert (shown["depth"], shown["set_aside"]) == ("1", "0")
    assert float(shown["oldest_age_seconds"]) > 0
    told = json.loads(ledger(None, "spool", "status", "--json", **where).stdout)
    assert told == {
        "depth": 1,
        "set_aside": 0,
        "size_bytes": int(shown["size_bytes"]),
        "oldest_age_seconds": told["oldest_age_seconds"],
    }
    assert told["oldest_age_seconds"] > float(shown["oldest_age_seconds"])
    drained = ledger(database, "spool", "drain", **where)
    assert (drained.returncode, drained.stdout.split("\n")[0]) == (0, "depth\t0"), drained.stderr
    assert database.rows("SELECT count(*) FROM postings") == [(1,)]


def test_a_mapping_is_checked_by_the_ledgers_own_command(tmp_path: Path) -> None:
    (tmp_path / "mapping.toml").write_text('[fields]\nuser_id = "user"\n')
    (tmp_path / "body.json").write_bytes(body(userId=ABSENT, user="ada"))
    files = (str(tmp_path / "mapping.toml"), str(tmp_path / "body.json"))
    done = ledger(None, "mapping", "check", *files, "--json")
    tried = json.loads(done.stdout)
    assert (done.returncode, tried["outcome"], tried["reward"]["user_id"]) == (0, "credited", "ada")
    assert ledger(None, "mapping", "check", *files).stdout.startswith("would be credited")
