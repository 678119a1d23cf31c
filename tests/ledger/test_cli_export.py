"""`ledger export` and `ledger second-opinion`, as an operator meets them."""

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ledger.cli import app
from tests.conftest import SUPERUSER, Database, Run
from tests.ledger.test_cli import ledger
from tests.ledger.test_export import post_all, post_some
from tests.rewards import reward
from tests.test_readme import README


def test_an_export_is_told_in_a_table_and_in_json(
    database: Database, run: Run, tmp_path: Path
) -> None:
    post_some(database, run)
    done = ledger(database, "export", str(tmp_path / "a"), "--format", "csv")
    assert done.stdout.splitlines() == [
        "currency\tpostings\tdebits\tcredits\tagrees",
        "KWD\t10\t47.500\t47.500\tyes",
        "USD\t30\t157.50\t157.50\tyes",
        f"40 postings, 20 balances: {tmp_path / 'a'}",
    ]
    assert done.stderr == ""
    told = ledger(database, "export", str(tmp_path / "b"), "--format", "hledger", "--json")
    assert json.loads(told.stdout) == [json.loads((tmp_path / "b" / "manifest.json").read_text())]


DATES = re.compile(r"20\d\d-\d\d-\d\d(T[0-9:.]+Z)?")


def test_the_readme_shows_what_is_printed_and_written(
    database: Database, run: Run, tmp_path: Path
) -> None:
    example = reward(
        "acdc71c6-08ad-4cd9-8c1e-3c812487b854",
        "15",
        user_id="test-8-june-9",
        campaign_id="6bab1116-ae8e-4644-9cee-7a3d8ee9aff3",
    )
    post_all(database, run, [example])
    done = ledger(database, "export", str(tmp_path / "books"), "--format", "beancount")
    shown = DATES.sub("T", README)
    assert done.stdout.replace(f"{tmp_path}/", "") in README
    for name in ("postings-000001.beancount", "balances.beancount"):
        assert DATES.sub("T", (tmp_path / "books" / name).read_text()) in shown
    assert "  ".join(sorted(path.name for path in (tmp_path / "books").iterdir())) in README
    assert "beancount: agrees in all 2 balances" in ledger(database, "second-opinion").stdout


def test_an_export_of_books_that_do_not_hold_exits_1(
    database: Database, run: Run, tmp_path: Path
) -> None:
    post_some(database, run)
    database.rows("UPDATE balances SET credits = credits + 1 WHERE account ~ 'user-1'", SUPERUSER)
    done = ledger(database, "export", str(tmp_path / "a"), "--format", "csv")
    assert done.returncode == 1
    assert "USD\t30\t157.50\t157.50\tno" in done.stdout
    assert "ledger verify" in done.stderr
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["agrees"] is False


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--format", "excel"], "A format is one of csv, ndjson, parquet, beancount, hledger."),
        (["--format", "csv", "--from", "October"], "--from must be a day or a time"),
        (["--format", "csv", "--from", "2026-10-01", "--to", "2026-10-01"], "before --to"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["export", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 1
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_directory_that_cannot_be_written_is_one_sentence(
    database: Database, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = ledger(database, "export", str(tmp_path / "file"), "--format", "csv")
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["export", "second-opinion"])
def test_each_command_has_an_example(command: str) -> None:
    assert "Example: ledger" in CliRunner().invoke(app, [command, "--help"]).stdout


WITHOUT_HLEDGER = {"PATH": "/nowhere"}


def test_a_second_opinion_agrees_with_books_that_hold(database: Database, run: Run) -> None:
    post_some(database, run)
    done = ledger(database, "second-opinion")
    hledger = "agrees in all 20 balances" if shutil.which("hledger") else "not installed"
    first, second = done.stdout.splitlines()
    assert first == "beancount: agrees in all 20 balances"
    assert second.startswith(f"hledger: {hledger}")
    assert done.returncode == 0


def test_without_hledger_beancount_is_asked_alone(database: Database, run: Run) -> None:
    post_some(database, run, count=1)
    done = ledger(database, "second-opinion", **WITHOUT_HLEDGER)
    assert done.stdout.splitlines() == [
        "beancount: agrees in all 2 balances",
        "hledger: not installed, so not asked",
    ]
    assert done.returncode == 0


def test_a_second_opinion_that_differs_exits_1_and_names_the_balance(
    database: Database, run: Run
) -> None:
    post_some(database, run)
    database.rows("UPDATE balances SET debits = 1 WHERE account = 'user:user-4'", SUPERUSER)
    done = ledger(database, "second-opinion", **WITHOUT_HLEDGER)
    assert done.returncode == 1
    assert "beancount\tuser:user-4\tUSD\t" in done.stdout
    assert "beancount: 4 differences" in done.stdout
