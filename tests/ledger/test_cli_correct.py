"""The commands that correct, on real books: what they post, and what they say."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from ledger.cli import app
from ledger.writing import post
from tests.conftest import Database, Run
from tests.rewards import reward


@pytest.fixture
def books(database: Database, run: Run, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Books with a reward of 400 USD, which the commands of this process reach."""

    async def main() -> None:
        async with database.connected() as connection:
            await post(connection, [reward()])

    run(main())
    monkeypatch.setenv("DATABASE_URL", database.url())
    return database


def told(*words: str) -> Any:
    """What a command answers in JSON, or its words where it has no JSON."""
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.output) if "--json" in words else answer.output


def refused(*words: str) -> str:
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 1, answer.output
    return answer.stderr


def test_a_reward_is_taken_back_once_and_shown_so(books: Database) -> None:
    for _ in range(2):
        (line,) = told("reverse", "reward-1", "--reason", "a mistake", "--by", "ann", "--json")
        assert (line["kind"], line["amount"], line["balance_after"]) == ("reversal", "400", "0")
    (line,) = told("corrections", "user-1", "--json")
    assert (line["reward_id"], line["reason"], line["actor"]) == ("reward-1", "a mistake", "ann")
    mended, credited = told("history", "user-1", "--json")
    assert (credited["amount"], credited["reversed"]) == ("400", "400")
    shown = [mended[name] for name in ("reward", "type", "name", "amount", "balance after")]
    assert shown == ["reward-1", "reversal", "a mistake", "-400", "0"]
    assert "the books hold" in told("verify")


def test_a_part_without_a_key_is_reversed_each_time(books: Database) -> None:
    for left in ("300", "200"):
        words = ("reverse", "reward-1", "--reason", "a mistake", "--amount", "100", "--json")
        assert told(*words)[0]["balance_after"] == left


def test_an_adjustment_goes_through_two_hands(books: Database) -> None:
    ours = ("--reason", "an apology", "--key", "k", "--by", "ann")
    assert told("adjust", "propose", "user-1", "25", "usd", *ours) == "k is proposed\n"
    assert told("adjust", "propose", "user-1", "25", "usd", *ours) == "k was proposed before\n"
    (line,) = told("adjust", "list", "--json")
    assert (line["state"], line["amount"], line["proposed_by"]) == ("open", "25", "ann")
    assert "Somebody else" in refused("adjust", "approve", "k", "--by", "ann")
    (line,) = told("adjust", "approve", "k", "--by", "bob", "--json")
    assert line["balance_after"] == "425"
    assert told("adjust", "list", "--json") == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("reverse", "unknown", "--reason", "x"), "No reward has this rewardId"),
        (("reverse", "reward-1", "--reason", " "), "A reason is needed"),
        (("reverse", "reward-1", "--reason", "x", "--amount", "401"), "Only 400 is left"),
        (("reverse", "reward-1", "--reason", "x", "--amount", "NaN"), "An amount is above zero"),
        (("adjust", "propose", "u", "1", "NOPE", "--reason", "x"), "Nobody registered"),
        (("adjust", "approve", "unknown"), "Nothing waits under this key"),
        (("adjust", "reject", "unknown"), "Nothing waits under this key"),
    ],
)
def test_a_refusal_is_one_sentence_that_says_what_to_do(
    books: Database, words: tuple[str, ...], sentence: str
) -> None:
    assert refused(*words).startswith(sentence)


def test_a_balance_below_zero_must_be_allowed(books: Database) -> None:
    ours = ("--debit", "--reason", "spent", "--key", "k", "--by", "ann")
    told("adjust", "propose", "user-1", "300", "USD", *ours)
    told("adjust", "approve", "k", "--by", "bob")
    reverse = ("reverse", "reward-1", "--reason", "a mistake")
    assert refused(*reverse).startswith("The user's balance would be -300")
    assert told(*reverse, "--allow-negative", "--json")[0]["balance_after"] == "-300"
