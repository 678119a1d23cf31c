"""Verifying: books that hold have no findings, and each corruption is named."""

import pytest

from ledger.database import Role
from ledger.operations.verify import Finding, verify
from ledger.writing import post
from tests.conftest import SUPERUSER, Database, Run
from tests.rewards import reward


def findings(database: Database, run: Run) -> list[Finding]:
    async def main() -> list[Finding]:
        async with database.connected(Role.READER) as connection:
            return await verify(connection)

    return run(main())


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
    },
    "UPDATE postings SET balance_after = balance_after + 1 WHERE reward_id = 'r3'": {
        "each balance after is the one before and its posting"
    },
    "UPDATE postings SET version = 77 WHERE reward_id = 'r5'": {"versions count without a gap"},
    "UPDATE postings SET posted_at = posted_at - interval '1 h' WHERE reward_id = 'r2'": {
        "time does not run backwards along versions",
        "a period's totals are the sum of its postings",
    },
    "UPDATE postings SET posted_at = posted_at + interval '1 h' WHERE reward_id = 'r2'": {
        "time does not run backwards along versions",
        "a user's balance has the time of its last posting",
        "a period's totals are the sum of its postings",
    },
    "UPDATE postings SET debit_account = 'campaign:other' WHERE reward_id = 'r6'": {
        "a balance is the sum of its entries",
        "what was told is what was posted",
    },
    "UPDATE postings SET reward_id = 'other' WHERE reward_id = 'r6'": {
        "what was told is what was posted"
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
    "DELETE FROM rewards WHERE reward_id = 'r6'": {"what was told is what was posted"},
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corruption_by_the_superuser_is_named(
    corruption: str, database: Database, run: Run
) -> None:
    fill(database, run)
    # A superuser can switch the triggers off, and so pass the append-only rule by.
    database.rows(f"SET session_replication_role = replica; {corruption}", SUPERUSER)
    found = findings(database, run)
    assert {finding.rule for finding in found} == CORRUPTIONS[corruption]
    assert all(finding.subject for finding in found)


def test_a_digest_that_is_not_of_the_believed_bytes_is_named(database: Database, run: Run) -> None:
    fill(database, run)
    database.rows("ALTER TABLE rewards ALTER COLUMN believed_bytes_sha256 DROP EXPRESSION")
    database.rows(
        "SET session_replication_role = replica;"
        "UPDATE rewards SET believed_bytes = 'x' WHERE reward_id = 'r8'",
        SUPERUSER,
    )
    (finding,) = findings(database, run)
    assert finding.rule == "the digest is of the believed bytes"
    assert finding.subject == "r8"
