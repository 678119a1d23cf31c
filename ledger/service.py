"""Request → reading → reply; errors become gRPC statuses in one table."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus

from ledger import page, place
from ledger.callers import Scope, calling
from ledger.commits import Committed, Stretch
from ledger.errors import (
    DeadlineExceeded,
    FellBehind,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    RewardNotFound,
    Unauthenticated,
    Unavailable,
)
from ledger.money import CURRENCY_CODE
from ledger.reading import (
    Balance,
    BalanceKey,
    PastBalanceKey,
    Reader,
    RecordedReward,
    RewardFilter,
)
from ledger.reward import IDENTIFIER_LENGTH_MAX
from ledger.seal import Seal
from ledger.v1 import ledger_pb2 as pb
from ledger.watching import HEARTBEAT_SECONDS, Feed

SERVICE = pb.DESCRIPTOR.services_by_name["LedgerService"].full_name
DOMAIN = "reward-ledger"
KEYS_MAX = 500
PAGE_SIZE = 50
PAGE_SIZE_MAX = 1000
PAGE_SIZE_MAX_BYTES = 2 * 1024 * 1024
"""A longer page ends early: gRPC clients refuse messages over 4 MiB, and would refuse it again."""


class Problem(NamedTuple):
    """What a caller is told of an error: a status and a stable reason, in constant words."""

    status: grpc.StatusCode
    reason: str
    text: str


PROBLEMS: dict[type[Exception], Problem] = {
    InvalidArgument: Problem(
        grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", "the request is malformed"
    ),
    DecodeError: Problem(
        grpc.StatusCode.INVALID_ARGUMENT, "NOT_A_MESSAGE", "the request is not this message"
    ),
    Unauthenticated: Problem(
        grpc.StatusCode.UNAUTHENTICATED,
        "UNAUTHENTICATED",
        "no token and no certificate that is known here",
    ),
    PermissionDenied: Problem(
        grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", "the caller has not the scope"
    ),
    RewardNotFound: Problem(
        grpc.StatusCode.NOT_FOUND, "REWARD_NOT_FOUND", "no reward has this reward_id"
    ),
    Overloaded: Problem(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", "too much is waiting already"
    ),
    FellBehind: Problem(
        grpc.StatusCode.ABORTED, "FELL_BEHIND", "what came was not taken; go on from the token"
    ),
    DeadlineExceeded: Problem(
        grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "it took too long; ask again"
    ),
    Unavailable: Problem(
        grpc.StatusCode.UNAVAILABLE, "BOOKS_UNAVAILABLE", "the books cannot be reached; ask again"
    ),
    Exception: Problem(grpc.StatusCode.INTERNAL, "INTERNAL", "a fault of ours"),
}
"""Every error that an answer can meet; the nearest ancestor decides."""

RETRY_SECONDS = 1
"""How long a caller is asked to wait before it asks again."""


class Part(NamedTuple):
    """A message of a stream, and the token with which the stream goes on behind it."""

    message: bytes
    token: str


class LedgerService:
    """``ledger.v1.LedgerService``: each method takes its request and gives its reply.

    They raise ``LedgerError``; ``problem_of`` finds the status for it.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._feed = Feed(reader.ask, reader.connection_besides)

    async def get_balance(self, request: pb.GetBalanceRequest) -> pb.GetBalanceResponse:
        """One balance, now or as of a time; concurrent calls share a round trip."""
        key = _key(request.user_id, request.currency, "")
        if request.HasField("as_of"):
            balance = await self._reader.past_balance(
                PastBalanceKey(*key, _time(request.as_of, "as_of"))
            )
        else:
            balance = await self._reader.balance(key)
        return pb.GetBalanceResponse(balance=_balance(balance))

    async def list_balances(self, request: pb.ListBalancesRequest) -> pb.ListBalancesResponse:
        """All balances of a user, by currency, now or as of a time."""
        user_id = _identifier(request.user_id, "user_id")
        as_of = _time(request.as_of, "as_of") if request.HasField("as_of") else None
        balances = await self._reader.balances_of(user_id, as_of)
        return pb.ListBalancesResponse(balances=map(_balance, balances))

    async def batch_get_balances(
        self, request: pb.BatchGetBalancesRequest
    ) -> pb.BatchGetBalancesResponse:
        """Many balances from one snapshot, in the order of their keys."""
        if not 1 <= len(request.keys) <= KEYS_MAX:
            raise InvalidArgument("keys", f"must be 1 to {KEYS_MAX}")
        keys = [
            _key(key.user_id, key.currency, f"keys[{place}].")
            for place, key in enumerate(request.keys)
        ]
        as_of = _time(request.as_of, "as_of") if request.HasField("as_of") else None
        balances = await self._reader.balances(keys, as_of)
        return pb.BatchGetBalancesResponse(balances=map(_balance, balances))

    async def list_rewards(self, request: pb.ListRewardsRequest) -> pb.ListRewardsResponse:
        """A page of a user's rewards, newest first."""
        chosen = _filter(request)
        if request.page_size < 0:
            raise InvalidArgument("page_size", "is negative")
        size = min(request.page_size or PAGE_SIZE, PAGE_SIZE_MAX)
        seal = await self._reader.seal()
        before = page.start(seal, request.page_token, chosen)
        found = await self._reader.rewards(chosen, before, size, PAGE_SIZE_MAX_BYTES)
        response = pb.ListRewardsResponse()
        below, last = found.below, before
        size_bytes = 0
        for reward in found.rewards:
            reply = _reward(reward)
            size_bytes += reply.ByteSize()
            if response.rewards and size_bytes > PAGE_SIZE_MAX_BYTES:
                below = last
                break
            response.rewards.append(reply)
            last = reward.number
        if below is not None:
            response.next_page_token = page.token(seal, below, chosen)
        return response

    async def get_reward(self, request: pb.GetRewardRequest) -> pb.GetRewardResponse:
        """One reward."""
        reward = await self._reader.reward(_identifier(request.reward_id, "reward_id"))
        return pb.GetRewardResponse(reward=_reward(reward))

    async def list_currency_totals(
        self, request: pb.ListCurrencyTotalsRequest
    ) -> pb.ListCurrencyTotalsResponse:
        """The trial balance of every currency."""
        as_of = _time(request.as_of, "as_of") if request.HasField("as_of") else None
        return pb.ListCurrencyTotalsResponse(
            totals=[
                pb.CurrencyTotals(
                    debits=_amount(totals.currency, totals.debits),
                    credits=_amount(totals.currency, totals.credits),
                    difference=_amount(totals.currency, totals.difference),
                    rewards=totals.rewards,
                    users=totals.users,
                )
                for totals in await self._reader.currency_totals(as_of)
            ]
        )

    async def watch_rewards(
        self, request: pb.WatchRewardsRequest, end: Callable[[Exception], None]
    ) -> AsyncGenerator[Part, None]:
        """Rewards as they are committed; ``end`` is called to end it while it is not asking."""
        is_chosen = _choice(request)
        seal = await self._reader.seal()
        start = place.BEGINNING if request.from_beginning else None
        if request.WhichOneof("start") == "token":
            start = place.place_of(seal, request.token)
        loop = asyncio.get_running_loop()
        is_due_at = 0.0
        async with aclosing(self._feed.watch(start, end)) as stretches:
            async for stretch in stretches:
                if is_chosen is None:
                    yield _shared_part(seal, stretch)
                    continue
                chosen = [each for each in stretch.rewards if is_chosen(each.reward)]
                # Now and then also when all is passed over: a token must not grow old.
                if chosen or not stretch.rewards or loop.time() >= is_due_at:
                    is_due_at = loop.time() + HEARTBEAT_SECONDS
                    yield _part(seal, stretch, chosen)


def problem_of(error: BaseException, token: str = "") -> tuple[Problem, RpcStatus]:
    """The row of the table for ``error``, and the details that its caller gets with it.

    ``token`` is where a stream that was ended goes on.
    """
    problem = next(PROBLEMS[ancestor] for ancestor in type(error).__mro__ if ancestor in PROBLEMS)
    status = RpcStatus(code=problem.status.value[0], message=problem.text)
    info = ErrorInfo(reason=problem.reason, domain=DOMAIN)
    if isinstance(error, PermissionDenied):
        info.metadata["scope"] = error.scope
    if token:
        info.metadata["token"] = token
    status.details.add().Pack(info)
    if problem.status is grpc.StatusCode.INVALID_ARGUMENT:
        violation = BadRequest.FieldViolation(description=problem.text)
        if isinstance(error, InvalidArgument):
            violation = BadRequest.FieldViolation(field=error.field, description=error.reason)
        status.details.add().Pack(BadRequest(field_violations=[violation]))
    if isinstance(error, Unavailable):
        retry = RetryInfo()
        retry.retry_delay.seconds = RETRY_SECONDS
        status.details.add().Pack(retry)
    return problem, status


def _key(user_id: str, currency: str, path: str) -> BalanceKey:
    return BalanceKey(
        _identifier(user_id, f"{path}user_id"), _currency(currency, f"{path}currency")
    )


def _identifier(value: str, field: str) -> str:
    if not 0 < len(value) <= IDENTIFIER_LENGTH_MAX:
        raise InvalidArgument(field, f"is not 1 to {IDENTIFIER_LENGTH_MAX} characters long")
    if "\0" in value:
        raise InvalidArgument(field, "holds a NUL")
    return value


def _currency(value: str, field: str) -> str:
    code = value.upper()
    if not value.isascii() or CURRENCY_CODE.fullmatch(code) is None:
        raise InvalidArgument(field, "is not a currency's code")
    return code


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _time(timestamp: Timestamp, field: str) -> datetime:
    """Postgres keeps microseconds: what lies between two of them belongs to the earlier."""
    try:
        if not 0 <= timestamp.nanos <= 999_999_999:
            raise InvalidArgument(field, "is not a time")
        return _EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)
    except OverflowError:
        raise InvalidArgument(field, "is not a time") from None


def _timestamp(at: datetime | None) -> Timestamp | None:
    if at is None:
        return None
    seconds, microseconds = divmod((at - _EPOCH) // _MICROSECOND, 1_000_000)
    return Timestamp(seconds=seconds, nanos=microseconds * 1000)


def _filter(request: pb.ListRewardsRequest) -> RewardFilter:
    start = _time(request.start_time, "start_time") if request.HasField("start_time") else None
    end = _time(request.end_time, "end_time") if request.HasField("end_time") else None
    if start is not None and end is not None and end < start:
        raise InvalidArgument("end_time", "is before start_time")
    campaign_id, type_ = request.campaign_id, request.type
    return RewardFilter(
        user_id=_identifier(request.user_id, "user_id"),
        currency=_currency(request.currency, "currency") if request.currency else None,
        campaign_id=_identifier(campaign_id, "campaign_id") if campaign_id else None,
        type=_identifier(type_, "type") if type_ else None,
        start_time=start,
        end_time=end,
    )


def _choice(request: pb.WatchRewardsRequest) -> Callable[[RecordedReward], bool] | None:
    """Whether a reward is asked for; ``None`` when every one is."""
    user_id = _identifier(request.user_id, "user_id") if request.user_id else None
    currency = _currency(request.currency, "currency") if request.currency else None
    campaign_id = _identifier(request.campaign_id, "campaign_id") if request.campaign_id else None
    type_ = _identifier(request.type, "type") if request.type else None
    if user_id is currency is campaign_id is type_ is None:
        return None

    def is_chosen(reward: RecordedReward) -> bool:
        return (
            user_id in {None, reward.user_id}
            and campaign_id in {None, reward.campaign_id}
            and type_ in {None, reward.type}
            and currency in {None, reward.posting and reward.posting.currency}
        )

    return is_chosen


def _shared_part(seal: Seal, stretch: Stretch) -> Part:
    """Made once for all who may see the same of it."""
    key = Scope.CODES in calling.get().scopes
    if key not in stretch.made:
        stretch.made[key] = _part(seal, stretch, stretch.rewards)
    part: Part = stretch.made[key]
    return part


def _part(seal: Seal, stretch: Stretch, chosen: Sequence[Committed]) -> Part:
    token = place.token(seal, stretch.through)
    rewards = [_reward(each.reward) for each in chosen]
    return Part(pb.WatchRewardsResponse(rewards=rewards, token=token).SerializeToString(), token)


def _amount(currency: str, value: str) -> pb.Amount:
    return pb.Amount(currency=currency, value=value)


def _balance(balance: Balance) -> pb.Balance:
    return pb.Balance(
        user_id=balance.user_id,
        amount=_amount(balance.currency, balance.value),
        version=balance.version,
        posted_at=_timestamp(balance.posted_at),
    )


def _reward(reward: RecordedReward) -> pb.Reward:
    posting = None
    if (booked := reward.posting) is not None:
        posting = pb.Posting(
            debit_account=booked.debit_account,
            credit_account=booked.credit_account,
            amount=_amount(booked.currency, booked.amount),
            version=booked.version,
            balance_after=_amount(booked.currency, booked.balance_after),
            posted_at=_timestamp(booked.posted_at),
        )
    return pb.Reward(
        reward_id=reward.reward_id,
        user_id=reward.user_id,
        campaign_id=reward.campaign_id,
        type=reward.type or "",
        reward_type=reward.reward_type or "",
        reward_name=reward.reward_name or "",
        status=reward.status or "",
        transaction_id=reward.transaction_id or "",
        category=reward.category or "",
        details_json=reward.details or "",
        expires_at=_timestamp(reward.expires_at),
        recorded_at=_timestamp(reward.recorded_at),
        posting=posting,
        code=(reward.code or "") if Scope.CODES in calling.get().scopes else "",
    )
