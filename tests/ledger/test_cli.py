"""The operator's commands, as processes, on a database that was given."""

import json
import subprocess
from datetime import UTC, timedelta, timezone

import pytest
import typer
from typer.testing import CliRunner

from ledger.cli import app
from ledger.writing import post
from tests.conftest import SUPERUSER, Database, Run
from tests.forked import run_command
from tests.rewards import reward


def ledger(
    database: Database | None, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    given = {"DATABASE_URL": database.url()} if database else {}
    return run_command("ledger", *arguments, **{**given, **environment})


def commands(group: typer.Typer, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command below ``group``, as the words that call it."""
    here = [
        (*path, command.name or str(getattr(command.callback, "__name__", "")).replace("_", "-"))
        for command in group.registered_commands
    ]
    for below in group.registered_groups:
        assert below.typer_instance is not None
        here += commands(below.typer_instance, (*path, str(below.name)))
    return here


COMMANDS = commands(app)


def fill(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            await post(connection, [reward("r1", amount="12.5"), reward("r2", currency="POINTS")])
            await post(connection, [reward("r3", amount=None)])

    run(main())


def test_reading_commands_answer_in_json(database: Database, run: Run) -> None:
    fill(database, run)
    balances = json.loads(ledger(database, "balance", "user-1", "--json").stdout)
    assert [(row["currency"], row["balance"], row["postings"]) for row in balances] == [
        ("POINTS", "400", 1),
        ("USD", "12.50", 1),
    ]
    history = json.loads(ledger(database, "history", "user-1", "--json").stdout)
    assert [(row["reward"], row["amount"], row["balance after"]) for row in history] == [
        ("r3", None, None),
        ("r2", "400", "400"),
        ("r1", "12.50", "12.50"),
    ]
    totals = json.loads(ledger(database, "totals", "--json").stdout)
    assert [(row["currency"], row["debits"], row["difference"]) for row in totals] == [
        ("POINTS", "400", "0"),
        ("USD", "12.50", "0"),
    ]
    assert json.loads(ledger(database, "verify", "--json").stdout) == []


def test_balances_and_totals_can_be_asked_as_of_a_time(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            await post(connection, [reward("r1", amount="12.5")])
            await post(connection, [reward("r2", amount="1"), reward("r3", currency="POINTS")])

    run(main())
    ((at,),) = database.rows("SELECT posted_at FROM postings WHERE reward_id = 'r1'")
    # The same moment, as people in different places write it.
    for text in (at.isoformat(), at.astimezone(timezone(timedelta(hours=5))).isoformat()):
        balances = json.loads(
            ledger(database, "balance", "user-1", "--as-of", text, "--json").stdout
        )
        assert [(row["currency"], row["balance"]) for row in balances] == [("USD", "12.50")]
    without_zone = at.astimezone(UTC).replace(tzinfo=None).isoformat()
    totals = json.loads(ledger(database, "totals", "--as-of", without_zone, "--json").stdout)
    assert [(row["currency"], row["debits"]) for row in totals] == [("USD", "12.50")]
    refused = ledger(database, "totals", "--as-of", "yesterday")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)


def test_what_is_piped_is_one_tab_separated_line_a_row(database: Database, run: Run) -> None:
    fill(database, run)
    assert ledger(database, "totals").stdout.splitlines()[:2] == [
        "currency\tdebits\tcredits\tdifference\trewards\tusers",
        "POINTS\t400\t400\t0\t1\t1",
    ]


def test_history_gives_no_more_than_was_asked_for(database: Database, run: Run) -> None:
    fill(database, run)
    assert len(ledger(database, "history", "user-1", "--limit", "2").stdout.splitlines()) == 3


def test_verify_exits_1_and_names_what_it_found(database: Database, run: Run) -> None:
    fill(database, run)
    assert ledger(database, "verify").returncode == 0
    database.rows("UPDATE balances SET version = 9 WHERE account = 'user:user-1'", SUPERUSER)
    found = ledger(database, "verify")
    assert found.returncode == 1
    assert "user:user-1 USD" in found.stdout
    assert json.loads(ledger(database, "verify", "--json").stdout)[0]["rule"]


def test_a_currency_is_added_once_and_for_good(database: Database) -> None:
    added = ledger(database, "currency", "add", "GEMS", "--scale", "0", "--name", "Gems")
    assert (added.returncode, added.stdout) == (0, "GEMS is registered with 0 decimals\n")
    again = ledger(database, "currency", "add", "GEMS", "--scale", "2")
    assert again.returncode == 1
    assert "registered already" in again.stderr
    listed = json.loads(ledger(database, "currency", "list", "--json").stdout)
    assert {"code": "GEMS", "scale": 0, "name": "Gems"} in listed
    assert {"code": "JPY", "scale": 0, "name": "Yen"} in listed
    assert {"code": "POINTS", "scale": 0, "name": "Points"} in listed


@pytest.mark.parametrize("code", ["gems", "1GEM", "G EM", "", "G" * 21])
def test_a_code_that_no_amount_could_carry_is_refused(code: str, database: Database) -> None:
    assert ledger(database, "currency", "add", code, "--scale", "0").returncode == 1


def test_migrate_applies_everything_once(database: Database) -> None:
    done = ledger(database, "migrate")
    assert (done.returncode, done.stdout) == (0, "nothing to apply; 0 currencies added\n")


def test_a_database_without_books_is_told_so(database: Database) -> None:
    database.rows("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    answer = ledger(database, "totals")
    assert answer.returncode == 1
    assert "ledger migrate" in answer.stderr
    assert "Traceback" not in answer.stderr


UNUSABLE = {
    "DATABASE_URL": "postgresql://nobody:secret-word@127.0.0.1:1/none",
    "LEDGER_BIND": "50051",
    "LEDGER_PROCESSES": "many",
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_setting_that_cannot_be_used_is_one_sentence_without_its_value(name: str) -> None:
    arguments = {"DATABASE_URL": ["totals"]}.get(name, ["serve"])
    answer = ledger(
        None, *arguments, **{"DATABASE_URL": UNUSABLE["DATABASE_URL"], name: UNUSABLE[name]}
    )
    assert answer.returncode == 1
    assert name in answer.stderr
    assert "secret-word" not in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_serve_needs_a_database() -> None:
    answer = ledger(None, "serve", DATABASE_URL="")
    assert answer.returncode == 1
    assert answer.stderr == "DATABASE_URL is required\n"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_an_example(path: tuple[str, ...]) -> None:
    answer = CliRunner().invoke(app, [*path, "--help"])
    _, _, example = " ".join(answer.output.split()).partition("Example: ")
    assert f"ledger {' '.join(path)}" in example
