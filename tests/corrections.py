"""Corrections for tests, from what only they care about."""

from decimal import Decimal
from typing import Any

from ledger.correcting import approve, propose, reverse
from ledger.correction import Adjustment, Corrected, Reversal
from ledger.database import Role
from tests.conftest import Database


async def taken_back(
    database: Database, reward_id: str, amount: str | None = None, *, key: str = "", **told: Any
) -> Corrected:
    """A reversal of ``amount``, or of all that is left, as it was posted."""
    size = None if amount is None else Decimal(amount)
    asked = Reversal(key or f"reversal:{reward_id}", reward_id, size, "a mistake", "ann")
    async with database.connected(Role.CORRECTOR) as connection:
        return await reverse(connection, asked._replace(**told))


async def adjusted(
    database: Database, key: str, amount: str, *, user_id: str = "user-1", currency: str = "USD"
) -> Corrected:
    """An adjustment, as it was approved: below zero, the user may then owe it."""
    asked = Adjustment(key, user_id, currency, Decimal(amount), "goodwill", "an apology")
    async with database.connected(Role.CORRECTOR) as connection:
        await propose(connection, asked, "ann")
        return await approve(connection, key, "bob", may_go_below_zero=True)
