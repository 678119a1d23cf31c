"""What is asked: from a request's fields to values; ``InvalidArgument`` names the field."""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp

from ledger.correction import Reversal
from ledger.errors import InvalidAmount, InvalidArgument
from ledger.history import Line, RewardFilter
from ledger.money import CURRENCY_CODE, exact
from ledger.reading import BalanceKey
from ledger.reward import IDENTIFIER_LENGTH_MAX
from ledger.v1 import ledger_pb2 as pb

REASON_LENGTH_MAX = 1000


def balance_key(user_id: str, currency: str) -> BalanceKey:
    """Which balance is asked for."""
    return BalanceKey(identifier(user_id, "user_id"), currency_code(currency, "currency"))


def balance_keys(asked: Iterable[pb.BalanceKey]) -> list[BalanceKey]:
    """Which balances are asked for; the error names the first that is wrong by its place."""
    keys: list[BalanceKey] = []
    try:
        for key in asked:
            keys.append(balance_key(key.user_id, key.currency))  # noqa: PERF401 - counted if it fails
    except InvalidArgument as error:
        raise InvalidArgument(f"keys[{len(keys)}].{error.field}", error.reason) from None
    return keys


def identifier(value: str, field: str) -> str:
    """A required identifier."""
    if not 0 < len(value) <= IDENTIFIER_LENGTH_MAX:
        raise InvalidArgument(field, f"is not 1 to {IDENTIFIER_LENGTH_MAX} characters long")
    if "\0" in value:
        raise InvalidArgument(field, "holds a NUL")
    return value


def currency_code(value: str, field: str) -> str:
    """A required currency, in upper case."""
    code = _code(value)
    if code is None:
        raise InvalidArgument(field, "is not a currency's code")
    return code


# There are few, and a batch asks for the same one a hundred times.
@lru_cache(maxsize=256)
def _code(value: str) -> str | None:
    code = value.upper()
    return code if value.isascii() and CURRENCY_CODE.fullmatch(code) else None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def time_of(timestamp: Timestamp, field: str) -> datetime:
    """Postgres keeps microseconds: what lies between two of them belongs to the earlier."""
    try:
        if not 0 <= timestamp.nanos <= 999_999_999:
            raise InvalidArgument(field, "is not a time")
        return _EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)
    except OverflowError:
        raise InvalidArgument(field, "is not a time") from None


def history_filter(request: pb.ListRewardsRequest) -> RewardFilter:
    """Which part of a user's history is asked for."""
    start = time_of(request.start_time, "start_time") if request.HasField("start_time") else None
    end = time_of(request.end_time, "end_time") if request.HasField("end_time") else None
    if start is not None and end is not None and end < start:
        raise InvalidArgument("end_time", "is before start_time")
    campaign_id, type_ = request.campaign_id, request.type
    return RewardFilter(
        user_id=identifier(request.user_id, "user_id"),
        currency=currency_code(request.currency, "currency") if request.currency else None,
        campaign_id=identifier(campaign_id, "campaign_id") if campaign_id else None,
        type=identifier(type_, "type") if type_ else None,
        start_time=start,
        end_time=end,
    )


def choice(request: pb.WatchRewardsRequest) -> Callable[[Line], bool] | None:
    """Whether a line of the books is asked for; ``None`` when every one is."""
    user_id = identifier(request.user_id, "user_id") if request.user_id else None
    currency = currency_code(request.currency, "currency") if request.currency else None
    campaign_id = identifier(request.campaign_id, "campaign_id") if request.campaign_id else None
    type_ = identifier(request.type, "type") if request.type else None
    if user_id is currency is campaign_id is type_ is None:
        return None

    def is_chosen(line: Line) -> bool:
        return (
            user_id in {None, line.user_id}
            and campaign_id in {None, line.campaign_id}
            and type_ in {None, line.type}
            and currency in {None, line.currency}
        )

    return is_chosen


_AMOUNT = re.compile(r"[0-9]{1,40}(\.[0-9]{1,40})?", re.ASCII)


def reversal(request: pb.ReverseRewardRequest, actor: str) -> Reversal:
    """What is to be taken back, and why; ``actor`` is who asks for it."""
    reason = request.reason
    if not reason.strip() or len(reason) > REASON_LENGTH_MAX or "\0" in reason:
        raise InvalidArgument(
            "reason", f"is not 1 to {REASON_LENGTH_MAX} characters, or holds a NUL or only spaces"
        )
    return Reversal(
        key=identifier(request.key, "key"),
        reward_id=identifier(request.reward_id, "reward_id"),
        amount=_amount(request.amount) if request.amount else None,
        reason=reason,
        actor=actor,
    )


def _amount(text: str) -> Decimal:
    try:
        amount = exact(Decimal(text)) if _AMOUNT.fullmatch(text) else Decimal(0)
    except InvalidAmount:
        amount = Decimal(0)
    if not amount:
        raise InvalidArgument("amount", "is not an amount above zero")
    return amount
