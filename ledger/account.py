"""The chart of accounts: which kinds of account there are, and their normal sides."""

from enum import StrEnum
from typing import NamedTuple


class Side(StrEnum):
    """One of the two sides of a posting, in the accountant's sense."""

    DEBIT = "debit"
    CREDIT = "credit"


class Kind(NamedTuple):
    """A kind of account: the prefix of its names, and the side on which it is positive."""

    prefix: str
    normal_side: Side

    def account(self, name: str) -> str:
        """The account of this kind that ``name`` names."""
        return self.prefix + name


USER = Kind("user:", Side.CREDIT)
"""A liability: what the user is owed."""

CAMPAIGN = Kind("campaign:", Side.DEBIT)
"""An expense, a house account: what the campaign's rewards cost."""

ADJUSTMENT = Kind("adjustment:", Side.DEBIT)
"""An expense, a house account: what was granted to users, or taken from them, by hand."""

KINDS = (USER, CAMPAIGN, ADJUSTMENT)
