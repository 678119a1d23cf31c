"""What mends a mistake: a posting that no reward told, with who asked for it and why."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from ledger.account import ADJUSTMENT, USER
from ledger.posting import Posting


class CorrectionKind(StrEnum):
    """Why something is posted that no reward told."""

    REVERSAL = "reversal"
    """Takes back what a reward credited, whole or in part."""
    ADJUSTMENT = "adjustment"
    """Moves an amount between a user and a house account; two persons agreed."""


class Reversal(NamedTuple):
    """A reversal as it is asked for; its ``key`` is the idempotency key."""

    key: str
    reward_id: str
    amount: Decimal | None
    """``None``: all that is left of what the reward credited."""
    reason: str
    actor: str


class Adjustment(NamedTuple):
    """An adjustment as it is proposed; its ``key`` is the idempotency key."""

    key: str
    user_id: str
    currency: str
    amount: Decimal
    """Positive: credited to the user. Negative: debited from the user."""
    house: str
    """The name of the house account, such as ``goodwill``."""
    reason: str

    def posting(self) -> Posting:
        """How it is booked when it is approved."""
        house, user = ADJUSTMENT.account(self.house), USER.account(self.user_id)
        debit, credit = (house, user) if self.amount > 0 else (user, house)
        return Posting(debit, credit, self.currency, abs(self.amount))


class Proposal(NamedTuple):
    """An adjustment that somebody proposed."""

    key: str
    state: str
    """``open``, ``approved`` or ``rejected``."""
    user_id: str
    posting: Posting
    reason: str
    proposed_by: str
    proposed_at: datetime
    decided_by: str | None


class Corrected(NamedTuple):
    """A correction as it stands in the books; the same one, whenever it is asked for."""

    key: str
    kind: CorrectionKind
    reward_id: str | None
    """Of a reversal: the reward that it takes back."""
    user_id: str
    debit_account: str
    credit_account: str
    currency: str
    amount: str
    reason: str
    actor: str
    approver: str | None
    version: int
    balance_after: str
    posted_at: datetime
