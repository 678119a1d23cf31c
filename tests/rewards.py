"""Rewards for tests, from what only they care about."""

from decimal import Decimal
from typing import Any

from ledger.reward import Reward

EXAMPLE = Reward(
    reward_id="reward-1",
    user_id="user-1",
    campaign_id="campaign-1",
    type="scratchcard",
    reward_type="points",
    reward_name="200 Coins",
    reward_amount=Decimal(400),
    currency="USD",
    code=None,
    status=None,
    transaction_id=None,
    reward_expires_at=None,
    reward_category=None,
    details=None,
    body=None,
    tnc=None,
    webhook_type=None,
    believed_bytes=b"{}",
)


def reward(reward_id: str = "reward-1", amount: str | None = "400", **told: Any) -> Reward:
    """A reward of ``amount`` USD, or what ``told`` says otherwise; ``None`` posts nothing."""
    changed: dict[str, Any] = {"reward_id": reward_id, **told}
    if amount is None:
        changed |= {"reward_amount": None, "currency": None}
    else:
        changed["reward_amount"] = Decimal(amount)
    # Another fact comes in another text.
    changed.setdefault("believed_bytes", repr(sorted(changed.items())).encode())
    return EXAMPLE._replace(**changed)
