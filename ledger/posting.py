"""One ledger row: what is debited, what is credited, how much."""

from decimal import Decimal
from typing import NamedTuple


class Posting(NamedTuple):
    """Debits one account and credits another with one positive amount of one currency.

    Both legs stand in one value, so it is balanced by construction.
    """

    debit_account: str
    credit_account: str
    currency: str
    amount: Decimal
