"""The fact that we are told, and how it is booked."""

from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from typing import NamedTuple

from ledger.account import CAMPAIGN, USER
from ledger.posting import Posting

IDENTIFIER_LENGTH_MAX = 200
"""How many characters a rewardId, userId or campaignId may have."""

NOTHING_TO_POST = "noReward"
"""The reward type of "better luck next time": recorded whatever its amount says."""


class Reward(NamedTuple):
    """A reward as the sender told it; ``None`` stands for what was not said.

    The strings hold no NUL and no lone surrogate, the identifiers are not empty, and
    ``reward_amount`` is what ``ledger.money.exact`` returned.
    """

    reward_id: str
    user_id: str
    campaign_id: str
    type: str | None
    reward_type: str | None
    reward_name: str | None
    reward_amount: Decimal | None
    currency: str | None
    """What the amount is counted in; ``None`` exactly when there is nothing to post."""
    code: str | None
    status: str | None
    transaction_id: str | None
    reward_expires_at: datetime | None
    reward_category: str | None
    details: str | None
    """The details object as JSON text, custom attributes included."""
    body: str | None
    tnc: str | None
    """The list of terms as JSON text."""
    webhook_type: str | None
    believed_bytes: bytes
    """The text that the signature vouched for."""

    def posting(self) -> Posting | None:
        """How the reward is booked: the campaign's cost, owed to the user; ``None`` if not."""
        if self.currency is None or self.reward_amount is None:
            return None
        return Posting(
            CAMPAIGN.account(self.campaign_id),
            USER.account(self.user_id),
            self.currency,
            self.reward_amount,
        )

    def fingerprint(self) -> bytes:
        """SHA-256 of what decides the money: the same fact has the same one, whatever its status.

        The hashed text is user, amount, currency, campaign, reward type and code, in this order,
        joined by NUL, which none of them can hold; what was not said is empty.
        """
        amount = "" if self.reward_amount is None else f"{self.reward_amount:f}"
        return sha256(
            "\0".join(
                (
                    self.user_id,
                    amount,
                    self.currency or "",
                    self.campaign_id,
                    self.reward_type or "",
                    self.code or "",
                )
            ).encode()
        ).digest()


def is_posted(reward_type: str | None, amount: Decimal | None) -> bool:
    """Whether a reward of this type and amount moves money; otherwise it is only recorded."""
    return amount is not None and amount > 0 and reward_type != NOTHING_TO_POST
