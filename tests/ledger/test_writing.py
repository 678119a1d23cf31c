"""Posting: what becomes of rewards, alone, together, again and against each other."""

from ledger.errors import IdempotencyConflict, InvalidAmount, UnknownCurrency
from ledger.writing import Receipt, Status, post
from tests.conftest import Database, Run
from tests.rewards import reward


def test_a_reward_is_credited_with_both_legs(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            (receipt,) = await post(connection, [reward(amount="12.5")])
        assert isinstance(receipt, Receipt)
        assert receipt.status is Status.CREDITED
        assert receipt.version == 1

    run(main())
    assert database.rows(
        "SELECT account, side, currency, amount::text FROM entries ORDER BY side DESC"
    ) == [
        ("campaign:campaign-1", "debit", "USD", "12.50"),
        ("user:user-1", "credit", "USD", "12.50"),
    ]


def test_a_reward_sent_twice_is_credited_once(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            first, again = await post(connection, [reward(), reward(status="redeemable-seen")])
            (later,) = await post(connection, [reward()])
        assert first.status is Status.CREDITED
        assert again == later == first._replace(status=Status.REPLAYED)

    run(main())
    assert database.rows("SELECT credits FROM balances WHERE account = 'user:user-1'") == [(400,)]


def test_what_cannot_be_booked_is_refused_and_its_batch_is_not(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            outcomes = await post(
                connection,
                [
                    reward("unknown", currency="NOPE"),
                    reward("fine"),
                    reward("too-fine", amount="1.234"),
                    reward("fine", amount="401"),
                    reward("unknown"),
                    reward("recorded", amount=None),
                ],
            )
        assert isinstance(outcomes[0], UnknownCurrency)
        assert outcomes[1].status is Status.CREDITED
        assert isinstance(outcomes[2], InvalidAmount)
        assert isinstance(outcomes[3], IdempotencyConflict)
        assert outcomes[4].status is Status.CREDITED
        assert outcomes[5].status is Status.RECORDED

    run(main())
