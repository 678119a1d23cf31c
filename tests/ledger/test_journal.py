"""The journals: read as they are by beancount and hledger, whatever accounts are called."""

import shutil
import subprocess
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from beancount import loader
from beancount.core.data import Balance, Commodity, Open, Transaction
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.account import KINDS, Kind, Side
from ledger.money import CURRENCY_CODE
from ledger.operations.exported import ExportedPosting
from ledger.operations.journal import Beancount, Hledger
from ledger.operations.journal_names import account_name, account_of, commodity_name, currency_of
from tests.conftest import Database, Run
from tests.ledger.test_export import HOSTILE, correct_some, export_to, post_all, post_some
from tests.rewards import reward

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200)
PREFIXES = ("user:", "campaign:", "adjustment:", "clawback:", "")
ODD_CODES = ("G", "GEM_", "GEM_X", "TRUE", "FALSE", "NULL", "A" * 20, "A" * 19 + "_", "X9")


@settings(deadline=None)
@given(TEXT, st.sampled_from(PREFIXES))
def test_a_name_tells_its_account_and_can_end_no_line(text: str, kind: str) -> None:
    account = kind + text
    name = account_name(account)
    assert account_of(name) == account
    assert name.isascii()
    root, above, leaf = name.split(":")
    assert (root + above).isalpha()
    assert leaf.replace("-", "").isalnum()
    assert leaf[0].isupper() or leaf[0].isdigit()


@settings(deadline=None)
@given(st.text("ANX_19", min_size=1, max_size=20).filter(CURRENCY_CODE.fullmatch))
def test_a_commodity_tells_its_currency(code: str) -> None:
    assert currency_of(commodity_name(code)) == code


@pytest.mark.parametrize(
    ("account", "name"),
    [
        ("user:test-8-june-9", "Liabilities:Users:X-test-8-june-9"),
        ("user:6bab1116-ae8e", "Liabilities:Users:6bab1116-ae8e"),
        ("user:Xa b", "Liabilities:Users:X58aX20b"),
        ("campaign:Ü", "Expenses:Campaigns:XC3X9C"),
        ("adjustment:goodwill", "Expenses:Adjustments:X-goodwill"),
        ("clawback:a", "Expenses:Other:X-clawbackX3Aa"),
    ],
)
def test_ordinary_accounts_can_be_read(account: str, name: str) -> None:
    assert account_name(account) == name


def post_hostile(database: Database, run: Run) -> list[str]:
    """Rewards with hostile ids in odd currencies; their rewardIds."""
    for code in ODD_CODES:
        database.rows(f"INSERT INTO currencies VALUES ('{code}', 2, '')")
    rewards = [
        reward(text, amount="0.25", user_id=text, campaign_id=text, currency=code)
        for text, code in zip(HOSTILE, [*ODD_CODES, *["USD"] * 9], strict=False)
    ]
    post_all(database, run, rewards)
    post_some(database, run)
    correct_some(database, run)
    return [one.reward_id for one in rewards]


def test_beancount_reads_it_whole_and_finds_every_assertion_true(
    database: Database, run: Run, tmp_path: Path
) -> None:
    ids = post_hostile(database, run)
    export_to(database, run, tmp_path / "out", "beancount", part_rows=10)
    entries, errors, _ = loader.load_file(str(tmp_path / "out" / "main.beancount"))
    assert errors == []
    postings = database.rows(
        "SELECT kind, postings.reward_id, correction_key, corrections.reward_id, version::text,"
        " postings.amount, postings.debit_account, postings.credit_account"
        " FROM postings LEFT JOIN corrections USING (correction_key)"
    )
    transactions = [entry for entry in entries if isinstance(entry, Transaction)]
    assert {
        (
            None if one.narration == "reward" else one.narration,
            *(one.meta.get(key) for key in ("reward", "correction", "reverses", "version")),
            one.postings[0].units.number,
            *(account_of(leg.account) for leg in one.postings),
        )
        for one in transactions
    } == set(postings)
    assert set(ids) < {one.meta.get("reward") for one in transactions}
    held = database.rows("SELECT account, currency, debits - credits FROM balances")
    asserted = {
        (account_of(one.account), currency_of(one.amount.currency), one.amount.number)
        for one in entries
        if isinstance(one, Balance) and one.account != "Equity:Opening"
    }
    assert asserted == set(held)
    assert all(one.tolerance == 0 for one in entries if isinstance(one, Balance))
    assert {one.meta["account"] for one in entries if isinstance(one, Open)} == {
        "opening",
        *(account for account, _, _ in held),
    }
    commodities = {currency_of(one.currency) for one in entries if isinstance(one, Commodity)}
    assert commodities == {currency for _, currency, _ in held}


def hledger(journal: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["hledger", "-f", str(journal), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("hledger") is None, reason="hledger is not installed")
def test_hledger_reads_it_whole_and_finds_every_assertion_true(
    database: Database, run: Run, tmp_path: Path
) -> None:
    ids = post_hostile(database, run)
    export_to(database, run, tmp_path / "out", "hledger", part_rows=10)
    journal = tmp_path / "out" / "main.journal"
    hledger(journal, "check", "--strict")
    assert set(ids) < set(map(unquote, hledger(journal, "tags", "reward", "--values").split("\n")))
    accounts = hledger(journal, "accounts", "--declared").split()
    assert {account_of(name) for name in accounts} - {"Equity:Opening"} == {
        account for (account,) in database.rows("SELECT DISTINCT account FROM balances")
    }


@pytest.mark.parametrize("format_", ["beancount", "hledger"])
def test_a_cent_too_much_fails_an_assertion(
    format_: str, database: Database, run: Run, tmp_path: Path
) -> None:
    """Without a word on its tolerance, beancount would let a hundredth pass."""
    post_all(database, run, [reward("r1", "12.50"), reward("r2", "12.50")])
    export_to(database, run, tmp_path / "out", format_)
    (part,) = (tmp_path / "out").glob("postings-*")
    part.write_text(part.read_text().replace("12.50", "12.51", 2))
    if format_ == "beancount":
        _, errors, _ = loader.load_file(str(tmp_path / "out" / "main.beancount"))
        assert len(errors) == 2
    elif shutil.which("hledger"):
        with pytest.raises(AssertionError, match="balance assertion"):
            hledger(tmp_path / "out" / "main.journal", "check")


def test_a_period_begins_with_what_was_held_before(
    database: Database, run: Run, tmp_path: Path
) -> None:
    post_some(database, run)
    ((middle,),) = database.rows(
        "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
    )
    post_some(database, run, prefix="later-")
    export_to(database, run, tmp_path / "out", "beancount", from_=middle)
    entries, errors, _ = loader.load_file(str(tmp_path / "out" / "main.beancount"))
    assert errors == []
    transactions = [entry for entry in entries if isinstance(entry, Transaction)]
    openings = [one.postings[0] for one in transactions if one.narration == "opening"]
    expected = database.rows(
        "SELECT account, currency, sum(CASE side WHEN 'debit' THEN amount ELSE -amount END)"
        f" FROM entries WHERE posted_at < '{middle}' GROUP BY 1, 2"
    )
    assert {
        (account_of(one.account), one.units.currency, one.units.number) for one in openings
    } == set(expected)
    rewards = {one.meta["reward"] for one in transactions if one.narration == "reward"}
    assert len(rewards) == 40
    assert all(reward_id.startswith("later-") for reward_id in rewards)


CORRECTION: dict[str, Any] = {
    "user_id": "ann",
    "currency": "USD",
    "version": 2,
    "reward_id": None,
    "correction_key": "oops, 1",
    "reversed_reward_id": None,
    "debit_account": "user:ann",
    "credit_account": "adjustment:good\nwill",
    "amount": "1.00",
    "balance_after": "0.00",
    "posted_at": "2026-10-31T23:59:59.999999Z",
}


def test_a_posting_without_a_reward_is_told_by_its_own_legs() -> None:
    posting = ExportedPosting(**CORRECTION)
    assert Beancount().posting(posting) == (
        '2026-10-31 * "adjustment"\n  correction: "oops, 1"\n  version: "2"\n'
        '  posted-at: "2026-10-31T23:59:59.999999Z"\n'
        "  Liabilities:Users:X-ann  1.00 USD\n"
        "  Expenses:Adjustments:X-goodX0Awill  -1.00 USD\n\n"
    )
    assert Hledger().posting(posting) == (
        "2026-10-31 * adjustment  ; correction:oops%2C%201, version:2,"
        " posted-at:2026-10-31T23:59:59.999999Z\n"
        '    Liabilities:Users:X-ann  1.00 "USD"\n'
        '    Expenses:Adjustments:X-goodX0Awill  -1.00 "USD"\n\n'
    )


def test_an_amount_of_thirty_digits_is_asserted_to_the_last() -> None:
    said = Beancount().assertion("A:B", "USD", Decimal("-" + "9" * 30 + ".25"), date(2026, 10, 31))
    assert said == f"2026-11-01 balance A:B  -{'9' * 30}.25 ~ 0 USD\n"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_account_has_a_place_among_an_accountants(kind: Kind) -> None:
    root = {Side.CREDIT: "Liabilities", Side.DEBIT: "Expenses"}[kind.normal_side]
    assert account_name(kind.account("A")).startswith(f"{root}:")
    assert not account_name(kind.account("A")).startswith("Expenses:Other")
