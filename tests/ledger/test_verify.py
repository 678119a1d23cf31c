"""Verifying: books that hold have no findings, and each corruption is named."""

from decimal import Decimal

import psycopg
import pytest

from ledger.correcting import approve, propose, reverse
from ledger.correction import Adjustment, Reversal
from ledger.database import Role, conninfo
from ledger.operations.finding import Finding
from ledger.operations.verify import in_words
from ledger.operations.verify_commits import _FIRSTS, _UNPLACED
from ledger.quarantine import Unposted, keep
from ledger.tallying import Tally
from ledger.writing import post
from tests.conftest import SUPERUSER, Database, Run
from tests.rewards import reward
from tests.verifying import verify


def findings(database: Database, run: Run) -> list[Finding]:
    found: list[Finding] = run(verify(database.url()))
    return found


def fill(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            await post(connection, [reward(f"r{n}", amount=f"{n}.5") for n in range(1, 6)])
            await post(
                connection,
                [
                    reward("r6", user_id="user-2", campaign_id="campaign-2"),
                    reward("r7", currency="POINTS"),
                    reward("r8", amount=None, code="SECRET"),
                ],
            )

    run(main())


SEALED = {"a row is as it was sealed"}
"""What is broken besides, by most."""

CORRECTED = {
    "UPDATE corrections SET amount = 6 WHERE kind = 'reversal'": {
        "a correction is posted as it was recorded",
        "a reversal takes back what its reward posted",
    },
    "UPDATE corrections SET reward_id = 'r6' WHERE kind = 'reversal'": {
        "a reversal takes back what its reward posted",
        "a day's movements are the sum of its postings",
    },
    "UPDATE corrections SET credit_account = 'campaign:other' WHERE kind = 'reversal'": {
        "a correction is posted as it was recorded",
        "a reversal takes back what its reward posted",
    },
    "UPDATE corrections SET reason = 'another' WHERE kind = 'adjustment'": {
        "an adjustment is what two persons agreed on"
    },
    "UPDATE proposals SET decided_by = 'cleo'": {"an adjustment is what two persons agreed on"},
    "DELETE FROM corrections WHERE kind = 'adjustment'": {
        "a commit brought the row with its first number",
        "a correction is posted as it was recorded",
        "an adjustment is what two persons agreed on",
        "a day's movements are the sum of its postings",
        "what a period's totals tell apart is the sum of its corrections",
    },
    "UPDATE period_totals SET corrections = 0 WHERE period = 'day'": {
        "a period's totals are the sum of its postings"
    },
    "DELETE FROM commits WHERE written_by IN (SELECT written_by FROM corrections)": {
        "each correction has one place in commit order"
    },
    "INSERT INTO commits (written_by, first_number, last_number, seal)"
    " SELECT written_by, number, number, 0 FROM corrections WHERE kind = 'reversal'": {
        "each correction has one place in commit order"
    },
    "UPDATE postings SET correction_key = 'other' WHERE correction_key = 'a'": {
        "a correction is posted as it was recorded",
        "a day's movements are the sum of its postings",
        "what a period's totals tell apart is the sum of its corrections",
    },
}


@pytest.mark.parametrize(("corruption", "rules"), CORRECTED.items(), ids=CORRECTED)
def test_a_corruption_of_what_was_corrected_is_named(
    database: Database, run: Run, corruption: str, rules: set[str]
) -> None:
    fill(database, run)

    async def main() -> None:
        info = conninfo(database.url(Role.CORRECTOR), Role.CORRECTOR)
        async with await psycopg.AsyncConnection.connect(info, autocommit=True) as connection:
            await reverse(connection, Reversal("a", "r5", None, "a mistake", "ann"))
            adjustment = Adjustment("b", "user-1", "USD", Decimal(2), "goodwill", "an apology")
            await propose(connection, adjustment, "ann")
            await approve(connection, "b", "bob")

    run(main())
    assert findings(database, run) == []
    database.rows(f"SET session_replication_role = replica; {corruption}", SUPERUSER)
    assert {finding.rule for finding in findings(database, run)} - SEALED == rules


def test_books_that_hold_have_no_findings(database: Database, run: Run) -> None:
    assert findings(database, run) == []
    fill(database, run)
    assert findings(database, run) == []


CORRUPTIONS = {
    "UPDATE balances SET credits = credits + 1 WHERE account = 'user:user-2'": {
        "a balance is the sum of its entries",
        "debits and credits of a currency are the sum of its postings",
    },
    "UPDATE balances SET debits = debits - 1 WHERE account = 'campaign:campaign-2'": {
        "a balance is the sum of its entries",
        "debits and credits of a currency are the sum of its postings",
    },
    "UPDATE balances SET version = version + 1 WHERE account = 'user:user-2'": {
        "a balance is the sum of its entries"
    },
    "UPDATE balances SET posted_at = posted_at + interval '1 s' WHERE account = 'user:user-2'": {
        "a user's balance has the time of its last posting"
    },
    "DELETE FROM balances WHERE account = 'user:user-2'": {
        "a balance is the sum of its entries",
        "debits and credits of a currency are the sum of its postings",
    },
    "INSERT INTO balances VALUES ('user:nobody', 'USD', 0, 1, 1, now())": {
        "a balance is the sum of its entries",
        "debits and credits of a currency are the sum of its postings",
    },
    "DELETE FROM postings WHERE reward_id = 'r3'": {
        "a balance is the sum of its entries",
        "versions count without a gap",
        "each balance after is the one before and its posting",
        "what was told is what was posted",
        "debits and credits of a currency are the sum of its postings",
        "a period's totals are the sum of its postings",
        "a day's movements are the sum of its postings",
    },
    "UPDATE postings SET balance_after = balance_after + 1 WHERE reward_id = 'r3'": {
        "each balance after is the one before and its posting"
    },
    "UPDATE postings SET version = 77 WHERE reward_id = 'r5'": {"versions count without a gap"},
    "UPDATE postings SET posted_at = posted_at - interval '1 day' WHERE reward_id = 'r2'": {
        "time does not run backwards along versions",
        "a period's totals are the sum of its postings",
        "a day's movements are the sum of its postings",
    },
    "UPDATE postings SET posted_at = posted_at + interval '1 day' WHERE reward_id = 'r2'": {
        "time does not run backwards along versions",
        "a user's balance has the time of its last posting",
        "a period's totals are the sum of its postings",
        "a day's movements are the sum of its postings",
    },
    "UPDATE postings SET debit_account = 'campaign:other' WHERE reward_id = 'r6'": {
        "a balance is the sum of its entries",
        "what was told is what was posted",
    },
    "UPDATE postings SET reward_id = 'other' WHERE reward_id = 'r6'": {
        "what was told is what was posted",
        "a day's movements are the sum of its postings",
    },
    "UPDATE postings SET amount = 400 WHERE reward_id = 'r6'": {
        "an amount has the decimals of its currency"
    },
    "UPDATE rewards SET reward_amount = 399 WHERE reward_id = 'r6'": {
        "what was told is what was posted",
        "the fingerprint is of what was told",
    },
    "UPDATE rewards SET user_id = 'user-3' WHERE reward_id = 'r8'": {
        "the fingerprint is of what was told"
    },
    "UPDATE rewards SET campaign_id = 'other' WHERE reward_id = 'r8'": {
        "the fingerprint is of what was told"
    },
    "UPDATE rewards SET reward_type = 'coins' WHERE reward_id = 'r8'": {
        "the fingerprint is of what was told"
    },
    "UPDATE rewards SET code = 'OTHER' WHERE reward_id = 'r8'": {
        "the fingerprint is of what was told"
    },
    "UPDATE rewards SET currency = 'EUR' WHERE reward_id = 'r6'": {
        "what was told is what was posted",
        "the fingerprint is of what was told",
    },
    "UPDATE rewards SET fingerprint = sha256('') WHERE reward_id = 'r8'": {
        "the fingerprint is of what was told"
    },
    "UPDATE period_totals SET amount = amount + 1 WHERE period = 'day'": {
        "a period's totals are the sum of its postings"
    },
    "UPDATE period_totals SET postings = postings + 1 WHERE period = 'minute'": {
        "a period's totals are the sum of its postings"
    },
    "UPDATE period_totals SET users = 0 WHERE period = 'day'": {
        "a period's totals are the sum of its postings"
    },
    "DELETE FROM period_totals WHERE period = 'minute'": {
        "a period's totals are the sum of its postings"
    },
    "DELETE FROM rewards WHERE reward_id = 'coupon'": {
        "a commit brought the row with its first number"
    },
    "DELETE FROM rewards WHERE reward_id = 'r6'": {
        "a commit brought the row with its first number",
        "what was told is what was posted",
        "a day's movements are the sum of its postings",
    },
    "UPDATE rewards SET written_by = '1' WHERE reward_id = 'r6'": {
        "each reward has one place in commit order",
        "a commit brought the row with its first number",
    },
    "ALTER TABLE rewards ALTER number SET GENERATED BY DEFAULT;"
    " UPDATE rewards SET number = number + 1 WHERE reward_id = 'r6'": {
        "each reward has one place in commit order",
        "a commit brought the row with its first number",
    },
    "UPDATE commits SET first_number = first_number + 1 WHERE first_number < last_number": {
        "each reward has one place in commit order",
    },
    "INSERT INTO commits (written_by, first_number, last_number, seal)"
    " SELECT written_by, number, number, 0 FROM rewards WHERE reward_id = 'r6'": {
        "each reward has one place in commit order"
    },
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corruption_by_the_superuser_is_named(
    corruption: str, database: Database, run: Run
) -> None:
    fill(database, run)

    async def main() -> None:
        async with database.connected() as connection:
            await post(connection, [reward("coupon", amount=None, code="ANOTHER")])

    run(main())
    # A superuser can switch the triggers off, and so pass the append-only rule by.
    database.rows(f"SET session_replication_role = replica; {corruption}", SUPERUSER)
    found = findings(database, run)
    assert {finding.rule for finding in found} - SEALED == CORRUPTIONS[corruption]
    assert all(finding.subject for finding in found)


def test_a_digest_that_is_not_of_the_believed_bytes_is_named(database: Database, run: Run) -> None:
    fill(database, run)
    database.rows("ALTER TABLE rewards ALTER COLUMN believed_bytes_sha256 DROP EXPRESSION")
    database.rows(
        "SET session_replication_role = replica;"
        "UPDATE rewards SET believed_bytes_sha256 = sha256('') WHERE reward_id = 'r8'",
        SUPERUSER,
    )
    (finding,) = findings(database, run)
    assert finding.rule == "the digest is of the believed bytes"
    assert finding.subject == "r8"


def test_books_that_were_there_before_commits_were_counted_are_verified_in_time(
    database: Database,
) -> None:
    """All of them have one writer then, and a commit each: not every two of them are compared."""

    database.rows(
        "SET session_replication_role = replica;"
        " INSERT INTO rewards (reward_id, user_id, campaign_id, believed_bytes, fingerprint)"
        " SELECT 'r-' || n, 'user-1', 'campaign-1', '', sha256('')"
        " FROM generate_series(1, 20000) AS n;"
        " INSERT INTO commits (written_by, first_number, last_number, seal)"
        " SELECT written_by, number, number, 0 FROM rewards",
        SUPERUSER,
    )
    # As the command asks; comparing every two takes ten times as long.
    info = conninfo(database.url(), Role.READER, statement_seconds_max=8, is_service=False)
    for analyzed in (False, True):
        if analyzed:
            database.rows("ANALYZE")
        with psycopg.connect(info) as connection:
            assert connection.execute(_UNPLACED).fetchall() == []
            assert connection.execute(_FIRSTS, {"first": 1, "last": 20000}).fetchall() == []


# What the ingress counted

COUNTED = {
    "believed": 20,
    "credited": 7,
    "recorded": 1,
    "ignored": 1,
    "replayed": 2,
    "conflicts": 1,
    "quarantined": 2,
    "spooled": 1,
    "unavailable": 2,
    "abandoned": 1,
    "in_flight": 2,
    "kept": 3,
}
"""As much as the books of ``fill`` hold, and adding up."""


def fill_and_count(database: Database, run: Run, **counted: int) -> None:
    fill(database, run)

    async def main() -> None:
        async with database.connected() as connection:
            refused = [Unposted(b"[]", "NotAReward"), Unposted(b"{", "NotJson")]
            await keep(connection, [*refused, refused[0]])

    run(main())
    row = COUNTED | counted
    database.rows(
        f"INSERT INTO tallies (worker, {', '.join(row)})"
        f" VALUES (gen_random_uuid(), {', '.join(map(str, row.values()))})"
    )


def test_counts_that_add_up_and_are_in_the_books_are_no_finding(
    database: Database, run: Run
) -> None:
    fill_and_count(database, run)
    assert findings(database, run) == []


def test_books_that_hold_more_than_was_counted_are_no_finding(database: Database, run: Run) -> None:
    fill_and_count(database, run, believed=17, credited=5, recorded=0, kept=0)
    assert findings(database, run) == []


@pytest.mark.parametrize("outcome", Tally().outcomes())
@pytest.mark.parametrize("difference", [1, -1])
def test_a_believed_delivery_without_an_outcome_or_with_two_is_named(
    database: Database, run: Run, outcome: str, difference: int
) -> None:
    fill_and_count(database, run, **{outcome: COUNTED[outcome] + difference})
    found = [
        finding
        for finding in findings(database, run)
        if finding.rule == "each believed delivery has one outcome"
    ]
    assert [(one.expected, one.found) for one in found] == [(str(20 + difference), "20")]


def test_differences_of_two_workers_do_not_hide_each_other(database: Database, run: Run) -> None:
    fill_and_count(database, run, believed=21)
    database.rows("INSERT INTO tallies (worker, ignored) VALUES (gen_random_uuid(), 1)")
    assert len(findings(database, run)) == 2


@pytest.mark.parametrize(
    ("count", "subject", "held"),
    [
        ("credited", "postings", 7),
        ("drained_credited", "postings", 7),
        ("recorded", "rewards without a posting", 1),
        ("drained_recorded", "rewards without a posting", 1),
        ("kept", "deliveries seen by the quarantine", 3),
    ],
)
def test_what_was_counted_and_is_not_in_the_books_is_named(
    database: Database, run: Run, count: str, subject: str, held: int
) -> None:
    more = {count: COUNTED.get(count, 0) + 1}
    if count in Tally().outcomes():
        more["believed"] = COUNTED["believed"] + 1
    fill_and_count(database, run, **more)
    assert findings(database, run) == [
        Finding(
            "what the ingress counted as done stands in the books",
            subject,
            f"at least {held + 1}",
            str(held),
        )
    ]


def test_the_sum_is_told_without_what_never_happened() -> None:
    assert in_words(Tally()) == "believed deliveries 0 = 0"
    assert in_words(Tally(believed=4, credited=3, in_flight=1, kept=7)) == (
        "believed deliveries 4 = credited 3 + in flight 1"
    )
    assert in_words(Tally(believed=4, credited=3)) == "believed deliveries 4 is not credited 3"
    assert in_words(Tally(believed=2, spooled=2, drained_credited=1, drained_kept=1)) == (
        "believed deliveries 2 = spooled 2; from the spool: credited 1 + kept 1"
    )
