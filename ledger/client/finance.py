"""Finance's questions and their answers: movements of a period, and trial balances."""

from datetime import date, datetime
from decimal import Decimal
from typing import Literal, NamedTuple

from ledger.client.questions import Question, timestamp
from ledger.v1 import ledger_pb2 as pb

Group = Literal["campaign", "type", "reward-type", "category"]

_GROUPS: dict[Group | None, pb.MovementGroup] = {
    None: pb.MOVEMENT_GROUP_UNSPECIFIED,
    "campaign": pb.MOVEMENT_GROUP_CAMPAIGN,
    "type": pb.MOVEMENT_GROUP_TYPE,
    "reward-type": pb.MOVEMENT_GROUP_REWARD_TYPE,
    "category": pb.MOVEMENT_GROUP_CATEGORY,
}


class Movement(NamedTuple):
    """What users are owed in one currency, or in one group of it, and what moved it."""

    currency: str
    group: str
    """Empty for what tells none, such as an adjustment, and when groups were not asked for."""
    opening: Decimal
    rewarded: Decimal
    reversed: Decimal
    """Zero or below."""
    adjusted: Decimal
    closing: Decimal
    rewards: int
    reversals: int
    adjustments: int


class MovementControl(NamedTuple):
    """What one currency's movements must come to, as is told beside them."""

    currency: str
    debits: Decimal
    credits: Decimal
    difference: Decimal
    """Debits less credits: zero unless the books are broken."""
    postings: int


class Movements(NamedTuple):
    """The movements of a period."""

    movements: tuple[Movement, ...]
    controls: tuple[MovementControl, ...]


class AccountKind(NamedTuple):
    """All accounts of one kind in one currency."""

    kind: str
    """``user``, ``campaign`` or ``adjustment``."""
    debits: Decimal
    credits: Decimal
    balance: Decimal
    """The kind's normal side less the other."""
    postings: int


class TrialBalance(NamedTuple):
    """All accounts of one currency by their kind."""

    currency: str
    accounts: tuple[AccountKind, ...]
    debits: Decimal
    credits: Decimal
    difference: Decimal
    postings: int


def list_movements(
    start_day: date,
    end_day: date,
    *,
    group: Group | None = None,
    timeout_seconds: float | None = None,
) -> Question[Movements]:
    """What moved each currency, or each group of it, from ``start_day`` to before ``end_day``.

    Days are of UTC.
    """
    request = pb.ListMovementsRequest(
        start_day=start_day.isoformat(), end_day=end_day.isoformat(), group=_GROUPS[group]
    )
    return Question("ListMovements", request, _movements, timeout_seconds)


def get_trial_balance(
    *, as_of: datetime | None = None, timeout_seconds: float | None = None
) -> Question[tuple[TrialBalance, ...]]:
    """All accounts of every currency by their kind, now or as of a time."""
    request = pb.GetTrialBalanceRequest(as_of=timestamp(as_of, "as_of"))
    return Question(
        "GetTrialBalance",
        request,
        lambda reply: tuple(map(_trial_balance, reply.currencies)),
        timeout_seconds,
    )


def _movements(reply: pb.ListMovementsResponse) -> Movements:
    return Movements(
        tuple(
            Movement(
                currency=each.opening.currency,
                group=each.group,
                opening=Decimal(each.opening.value),
                rewarded=Decimal(each.rewarded.value),
                reversed=Decimal(each.reversed.value),
                adjusted=Decimal(each.adjusted.value),
                closing=Decimal(each.closing.value),
                rewards=each.rewards,
                reversals=each.reversals,
                adjustments=each.adjustments,
            )
            for each in reply.movements
        ),
        tuple(
            MovementControl(
                currency=each.debits.currency,
                debits=Decimal(each.debits.value),
                credits=Decimal(each.credits.value),
                difference=Decimal(each.difference.value),
                postings=each.postings,
            )
            for each in reply.controls
        ),
    )


def _trial_balance(message: pb.TrialBalance) -> TrialBalance:
    return TrialBalance(
        currency=message.debits.currency,
        accounts=tuple(
            AccountKind(
                kind=each.kind,
                debits=Decimal(each.debits.value),
                credits=Decimal(each.credits.value),
                balance=Decimal(each.balance.value),
                postings=each.postings,
            )
            for each in message.accounts
        ),
        debits=Decimal(message.debits.value),
        credits=Decimal(message.credits.value),
        difference=Decimal(message.difference.value),
        postings=message.postings,
    )
