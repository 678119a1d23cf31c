"""What finance asks at the command line, on real books."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from ledger.cli import app
from ledger.writing import post
from tests.conftest import SUPERUSER, Database, Run
from tests.ledger.past import move
from tests.rewards import reward


@pytest.fixture
def books(database: Database, run: Run, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Books of September and October 2026, which the commands of this process reach."""

    async def main() -> None:
        async with database.connected() as connection:
            await post(connection, [reward("r-1", "400"), reward("r-2", "2.5", user_id="u-2")])

    run(main())
    move(
        database,
        "CASE reward_id WHEN 'r-1' THEN timestamptz '2026-09-30 23:59:59.999999Z'"
        " ELSE timestamptz '2026-10-31 12:00Z' END",
    )
    monkeypatch.setenv("DATABASE_URL", database.url())
    return database


def said(*words: str) -> str:
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    return answer.output


def told(*words: str) -> Any:
    """What a command answers in JSON."""
    return json.loads(said(*words, "--json"))


def refused(*words: str) -> str:
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 1, answer.output
    return answer.stderr


OCTOBER = ("totals", "--from", "2026-10-01", "--to", "2026-11-01")


def test_a_period_opens_moves_and_closes(books: Database) -> None:
    (answer,) = told(*OCTOBER)
    moved = {
        "opening": "400",
        "rewarded": "2.50",
        "reversed": "0",
        "adjusted": "0",
        "closing": "402.50",
        "rewards": 1,
        "reversals": 0,
        "adjustments": 0,
    }
    assert answer == {
        "from": "2026-10-01",
        "to": "2026-11-01",
        "movements": [{"currency": "USD", **moved}],
        "controls": [
            {"currency": "USD", "debits": "2.50", "credits": "2.50", "difference": "0",
             "postings": 1}
        ],
    }  # fmt: skip
    (answer,) = told(*OCTOBER, "--by", "campaign")
    assert answer["movements"] == [{"currency": "USD", "campaign": "campaign-1", **moved}]
    assert said(*OCTOBER).splitlines()[1:] == [
        "USD\t400\t2.50\t0\t0\t402.50\t1\t0\t0",
        "currency\tdebits\tcredits\tdifference\tpostings",
        "USD\t2.50\t2.50\t0\t1",
    ]
    assert told("totals")[0]["debits"] == "402.50"


def test_a_period_that_is_none_is_refused_in_a_sentence(books: Database) -> None:
    assert "say --to too" in refused("totals", "--from", "2026-10-01")
    assert "must be a day" in refused("totals", "--from", "October", "--to", "2026-11-01")
    assert "must be before" in refused("totals", "--from", "2026-11-01", "--to", "2026-11-01")
    assert "say either" in refused(*OCTOBER, "--as-of", "2026-10-01")
    assert "say --from and --to too" in refused("totals", "--by", "type")


def test_roll_ups_that_do_not_agree_are_shown_and_exit_1(books: Database) -> None:
    books.rows("UPDATE period_totals SET amount = amount + 1", SUPERUSER)
    assert "do not agree" in refused(*OCTOBER)


def test_a_trial_balance_is_shown_by_kind_of_account(books: Database) -> None:
    (balance,) = told("trial-balance", "--as-of", "2026-10-01")
    assert balance == {
        "currency": "USD",
        "accounts": [
            {"kind": "user", "debits": "0", "credits": "400", "balance": "400", "postings": 1},
            {"kind": "campaign", "debits": "400", "credits": "0", "balance": "400", "postings": 1},
        ],
        "debits": "400",
        "credits": "400",
        "difference": "0",
        "postings": 1,
    }
    assert said("trial-balance").splitlines() == [
        "currency\tkind\tdebits\tcredits\tbalance\tdifference\tpostings",
        "USD\tuser\t0\t402.50\t402.50\t\t2",
        "USD\tcampaign\t402.50\t0\t402.50\t\t2",
        "USD\tall\t402.50\t402.50\t\t0\t2",
    ]


def test_a_month_is_closed_shown_and_closed_again_the_same(books: Database) -> None:
    assert "2026-10 is not closed" in refused("statement", "2026-10")
    assert "the next is 2026-09" in refused("close", "2026-10")
    assert "such as 2026-10" in refused("close", "October")
    said("close", "2026-09", "--by", "ann")
    (closed,) = told("close", "2026-10", "--by", "ann")
    assert closed["accounts"][2] == {
        "currency": "USD",
        "kind": "user",
        "opening": "400",
        "rewarded": "2.50",
        "reversed": "0",
        "adjusted": "0",
        "closing": "402.50",
        "rewards": 1,
        "reversals": 0,
        "adjustments": 0,
    }
    assert closed["month"] == "2026-10"
    assert told("close", "2026-10", "--by", "bob") == [closed]
    assert told("statement", "2026-10") == [{**closed, "late": []}]
    lines = said("statement", "2026-10").splitlines()
    assert lines[3] == "USD\tuser\t400\t2.50\t0\t0\t402.50\t1\t0\t0"
    assert lines[5:] == [f"sha256 {closed['sha256']}", "0 rewards of it were posted late"]
