"""What the service answers, as values: exact decimals, and times that know their zone."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from google.protobuf.message import Message

from ledger.v1 import ledger_pb2 as pb


class Balance(NamedTuple):
    """What a user is owed in one currency."""

    user_id: str
    currency: str
    amount: Decimal
    version: int
    """How many postings made the balance."""
    posted_at: datetime | None
    """When the last of them was posted; ``None`` if there were none."""


class Posting(NamedTuple):
    """One ledger row: what was debited, what was credited, how much."""

    debit_account: str
    credit_account: str
    currency: str
    amount: Decimal
    version: int
    """Its place among the user's postings in this currency: 1, 2, 3, …"""
    balance_after: Decimal
    """The user's balance in this currency after it."""
    posted_at: datetime


class CorrectionKind(StrEnum):
    """Why something was posted that no reward told."""

    REVERSAL = "reversal"
    """Takes back what a reward credited, whole or in part."""
    ADJUSTMENT = "adjustment"
    """Moves an amount between a user and a house account; two persons agreed."""
    OTHER = "other"
    """One that this version of the client does not know."""


class Correction(NamedTuple):
    """A posting that no reward told: it mends a mistake, and leaves what was posted."""

    key: str
    """The idempotency key."""
    kind: CorrectionKind
    reward_id: str
    """Of a reversal: the reward that it takes back."""
    user_id: str
    reason: str
    actor: str
    """Who asked for it."""
    approver: str
    """Of an adjustment: who else agreed."""
    posting: Posting


@dataclass(frozen=True, slots=True)
class Reward:
    """What CustomerGlu told, and how it was booked; a text that it did not tell is empty."""

    reward_id: str
    user_id: str
    campaign_id: str
    type: str
    reward_type: str
    reward_name: str
    status: str
    transaction_id: str
    category: str
    details_json: str
    """The campaign's custom attributes, as JSON text."""
    expires_at: datetime | None
    """``None`` if never."""
    recorded_at: datetime
    posting: Posting | None
    """``None`` if nothing was posted."""
    code: str = field(default="", repr=False)
    """The coupon's code, if there is one and the caller may see it; never shown by accident."""
    reversed: Decimal | None = None
    """How much of it was taken back, by postings of their own; ``None`` if nothing was."""


Line: TypeAlias = Reward | Correction
"""What a history is made of."""
Told = TypeVar("Told")


class RewardPage(NamedTuple):
    """Some of a user's rewards, newest first."""

    rewards: tuple[Reward, ...]
    next_page_token: str
    """Asks for the next page; empty on the last."""
    lines: tuple[Line, ...] = ()
    """The same rewards with the corrections between them, newest first."""


class Watched(NamedTuple, Generic[Told]):
    """What was told together, in commit order; perhaps nothing."""

    lines: tuple[Told, ...]
    token: str
    """Where to go on when they have been taken."""


class CurrencyTotals(NamedTuple):
    """The trial balance of one currency."""

    currency: str
    debits: Decimal
    credits: Decimal
    difference: Decimal
    """Debits less credits: zero unless the books are broken."""
    rewards: int
    users: int


def balance(message: pb.Balance) -> Balance:
    """The balance that ``message`` tells."""
    return Balance(
        user_id=message.user_id,
        currency=message.amount.currency,
        amount=Decimal(message.amount.value),
        version=message.version,
        posted_at=_time_if_set(message, "posted_at"),
    )


def reward(message: pb.Reward) -> Reward:
    """The reward that ``message`` tells."""
    return Reward(
        reward_id=message.reward_id,
        user_id=message.user_id,
        campaign_id=message.campaign_id,
        type=message.type,
        reward_type=message.reward_type,
        reward_name=message.reward_name,
        status=message.status,
        transaction_id=message.transaction_id,
        category=message.category,
        details_json=message.details_json,
        expires_at=_time_if_set(message, "expires_at"),
        recorded_at=message.recorded_at.ToDatetime(UTC),
        posting=_posting(message.posting) if message.HasField("posting") else None,
        code=message.code,
        reversed=Decimal(message.reversed.value) if message.HasField("reversed") else None,
    )


_KINDS = {
    pb.CORRECTION_KIND_REVERSAL: CorrectionKind.REVERSAL,
    pb.CORRECTION_KIND_ADJUSTMENT: CorrectionKind.ADJUSTMENT,
}


def correction(message: pb.Correction) -> Correction:
    """The correction that ``message`` tells."""
    return Correction(
        key=message.key,
        kind=_KINDS.get(message.kind, CorrectionKind.OTHER),
        reward_id=message.reward_id,
        user_id=message.user_id,
        reason=message.reason,
        actor=message.actor,
        approver=message.approver,
        posting=_posting(message.posting),
    )


def reward_page(message: pb.ListRewardsResponse) -> RewardPage:
    """The page that ``message`` tells."""
    lines = _lines(message)
    rewards = tuple(line for line in lines if isinstance(line, Reward))
    return RewardPage(rewards, message.next_page_token, lines)


def watched(message: pb.WatchRewardsResponse) -> Watched[Line]:
    """What ``message`` tells, and where to go on."""
    return Watched(_lines(message), message.token)


def watched_rewards(message: pb.WatchRewardsResponse) -> Watched[Reward]:
    """The rewards alone that ``message`` tells, and where to go on."""
    return Watched(tuple(map(reward, message.rewards)), message.token)


def _lines(message: pb.ListRewardsResponse | pb.WatchRewardsResponse) -> tuple[Line, ...]:
    """Rewards and corrections in their order: each of these says how many of those it follows."""
    lines: list[Line] = []
    told = 0
    for each in message.corrections:
        lines += map(reward, message.rewards[told : each.rewards_before])
        told = each.rewards_before
        lines.append(correction(each))
    lines += map(reward, message.rewards[told:])
    return tuple(lines)


def currency_totals(message: pb.CurrencyTotals) -> CurrencyTotals:
    """The totals that ``message`` tells."""
    return CurrencyTotals(
        currency=message.debits.currency,
        debits=Decimal(message.debits.value),
        credits=Decimal(message.credits.value),
        difference=Decimal(message.difference.value),
        rewards=message.rewards,
        users=message.users,
    )


def _posting(message: pb.Posting) -> Posting:
    return Posting(
        debit_account=message.debit_account,
        credit_account=message.credit_account,
        currency=message.amount.currency,
        amount=Decimal(message.amount.value),
        version=message.version,
        balance_after=Decimal(message.balance_after.value),
        posted_at=message.posted_at.ToDatetime(UTC),
    )


def _time_if_set(message: Message, name: str) -> datetime | None:
    if not message.HasField(name):
        return None
    at: datetime = getattr(message, name).ToDatetime(UTC)
    return at
