"""What can be asked: one function for each call, from its arguments to a ``Question``.

A question knows its request and how the reply is read. It does not know who asks: both clients
take these functions as their methods.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Generic, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from ledger.client import values
from ledger.client.values import (
    Balance,
    Correction,
    CurrencyTotals,
    Line,
    Reward,
    RewardPage,
    Watched,
)
from ledger.v1 import ledger_pb2 as pb

Answer = TypeVar("Answer")
Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class Question(Generic[Answer]):
    """One call of the service."""

    method: str
    request: Any
    """A message of ``ledger.v1``."""
    read: Callable[[Any], Answer]
    """From the reply's message to the answer."""
    timeout_seconds: float | None
    """``None``: as long as the client gives every question."""


def get_balance(
    user_id: str,
    currency: str,
    *,
    as_of: datetime | None = None,
    timeout_seconds: float | None = None,
) -> Question[Balance]:
    """A user's balance in one currency, now or as of a time.

    It is zero for a user or a currency that was never credited.
    """
    request = pb.GetBalanceRequest(
        user_id=user_id, currency=currency, as_of=timestamp(as_of, "as_of")
    )
    return Question(
        "GetBalance", request, lambda reply: values.balance(reply.balance), timeout_seconds
    )


def list_balances(
    user_id: str, *, as_of: datetime | None = None, timeout_seconds: float | None = None
) -> Question[tuple[Balance, ...]]:
    """A user's balances in all currencies, by currency, now or as of a time."""
    request = pb.ListBalancesRequest(user_id=user_id, as_of=timestamp(as_of, "as_of"))
    return Question("ListBalances", request, _balances, timeout_seconds)


def batch_get_balances(
    keys: Iterable[tuple[str, str]],
    *,
    as_of: datetime | None = None,
    timeout_seconds: float | None = None,
) -> Question[tuple[Balance, ...]]:
    """Many balances from one snapshot, in the order of their keys: a user and a currency each."""
    request = pb.BatchGetBalancesRequest(
        keys=[pb.BalanceKey(user_id=user_id, currency=currency) for user_id, currency in keys],
        as_of=timestamp(as_of, "as_of"),
    )
    return Question("BatchGetBalances", request, _balances, timeout_seconds)


def list_rewards(
    user_id: str,
    *,
    currency: str = "",
    campaign_id: str = "",
    type: str = "",  # noqa: A002 - as the service calls it
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    page_size: int = 0,
    page_token: str = "",
    timeout_seconds: float | None = None,
) -> Question[RewardPage]:
    """A user's rewards, newest first; an empty filter keeps any.

    ``list_rewards`` gives them one by one and asks for page after page; ``list_rewards_page``
    gives one page, and the token of the next. The timeout is each page's. A page may hold fewer
    rewards than its size, because corrections count too: see ``list_history``.
    """
    return list_history(
        user_id,
        currency=currency,
        campaign_id=campaign_id,
        type=type,
        start_time=start_time,
        end_time=end_time,
        page_size=page_size,
        page_token=page_token,
        timeout_seconds=timeout_seconds,
    )


def list_history(
    user_id: str,
    *,
    currency: str = "",
    campaign_id: str = "",
    type: str = "",  # noqa: A002 - as the service calls it
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    page_size: int = 0,
    page_token: str = "",
    timeout_seconds: float | None = None,
) -> Question[RewardPage]:
    """A user's rewards and corrections, newest first, one by one; an empty filter keeps any.

    A filter of campaign or type keeps such rewards and their reversals. The timeout is each page's.
    """
    request = pb.ListRewardsRequest(
        user_id=user_id,
        currency=currency,
        campaign_id=campaign_id,
        type=type,
        start_time=timestamp(start_time, "start_time"),
        end_time=timestamp(end_time, "end_time"),
        page_size=page_size,
        page_token=page_token,
    )
    return Question("ListRewards", request, values.reward_page, timeout_seconds)


def get_reward(reward_id: str, *, timeout_seconds: float | None = None) -> Question[Reward]:
    """One reward; raises ``RewardNotFound`` if the books do not have it."""
    request = pb.GetRewardRequest(reward_id=reward_id)
    return Question(
        "GetReward", request, lambda reply: values.reward(reply.reward), timeout_seconds
    )


def watch_rewards(
    *,
    token: str | None = None,
    from_beginning: bool = False,
    user_id: str = "",
    currency: str = "",
    campaign_id: str = "",
    type: str = "",  # noqa: A002 - as the service calls it
) -> Question[Watched[Reward]]:
    """Rewards as they are committed, each once, without end; an empty filter keeps any.

    They begin with what is committed from now on, or behind ``token``, or with the first of the
    books. What is iterated over has a ``token`` too, to go on from another time: see
    ``ledger.client.watching``. Corrections are passed over: see ``watch_history``.
    """
    history = watch_history(
        token=token,
        from_beginning=from_beginning,
        user_id=user_id,
        currency=currency,
        campaign_id=campaign_id,
        type=type,
    )
    return Question(history.method, history.request, values.watched_rewards, None)


def watch_history(
    *,
    token: str | None = None,
    from_beginning: bool = False,
    user_id: str = "",
    currency: str = "",
    campaign_id: str = "",
    type: str = "",  # noqa: A002 - as the service calls it
) -> Question[Watched[Line]]:
    """Rewards and corrections as they are committed, each once, without end.

    As ``watch_rewards``, whose tokens hold here and the other way round. A filter of campaign or
    type keeps such rewards and their reversals.
    """
    if token is not None and from_beginning:
        raise ValueError("from_beginning and a token say different places")
    request = pb.WatchRewardsRequest(
        user_id=user_id, currency=currency, campaign_id=campaign_id, type=type
    )
    if token is not None:
        request.token = token
    elif from_beginning:
        request.from_beginning = True
    return Question("WatchRewards", request, values.watched, None)


def reverse_reward(
    reward_id: str,
    *,
    amount: Decimal | int | None = None,
    key: str,
    reason: str,
    allow_negative: bool = False,
    timeout_seconds: float | None = None,
) -> Question[Correction]:
    """Take back what a reward credited, or ``amount`` of it, by the opposite posting.

    The same ``key`` posts once: whoever does not know what became of it, such as after
    ``Unavailable``, asks again with the same one. The balance may go below zero if
    ``allow_negative``. Raises ``RewardNotFound``, ``NothingToReverse``, ``TooMuchToReverse``,
    ``BalanceTooLow``, ``KeyConflict`` or ``CorrectionsOff``; then nothing was posted.
    """
    request = pb.ReverseRewardRequest(
        reward_id=reward_id,
        amount="" if amount is None else f"{Decimal(amount):f}",
        key=key,
        reason=reason,
        allow_negative=allow_negative,
    )
    return Question(
        "ReverseReward", request, lambda reply: values.correction(reply.correction), timeout_seconds
    )


def list_currency_totals(
    *, as_of: datetime | None = None, timeout_seconds: float | None = None
) -> Question[tuple[CurrencyTotals, ...]]:
    """All debits and all credits per currency, which must agree, now or as of a time."""
    request = pb.ListCurrencyTotalsRequest(as_of=timestamp(as_of, "as_of"))
    return Question(
        "ListCurrencyTotals",
        request,
        lambda reply: tuple(map(values.currency_totals, reply.totals)),
        timeout_seconds,
    )


def next_page(question: Question[RewardPage], page: RewardPage) -> Question[RewardPage] | None:
    """The question for what follows ``page``, the answer to ``question``; ``None`` at the end."""
    if not page.next_page_token:
        return None
    request = pb.ListRewardsRequest()
    request.CopyFrom(question.request)
    request.page_token = page.next_page_token
    return replace(question, request=request)


def go_on(question: Question[Watched[Told]], token: str | None) -> Question[Watched[Told]]:
    """The question for what follows behind ``token``; ``question`` itself if there is none yet."""
    if token is None:
        return question
    request = pb.WatchRewardsRequest()
    request.CopyFrom(question.request)
    request.token = token
    return replace(question, request=request)


def _balances(reply: Any) -> tuple[Balance, ...]:
    return tuple(map(values.balance, reply.balances))


def timestamp(at: datetime | None, name: str) -> Timestamp | None:
    """``at`` for a request; raises ``ValueError`` if it does not say its time zone."""
    if at is None:
        return None
    # Protobuf would take it for UTC without a word.
    if at.utcoffset() is None:
        raise ValueError(f"{name} has no time zone")
    message = Timestamp()
    message.FromDatetime(at)
    return message
