"""What is told: from values to messages."""

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from ledger.callers import Scope, calling
from ledger.correction import Corrected, CorrectionKind
from ledger.history import Booked, Line, RecordedReward
from ledger.reading import Balance
from ledger.v1 import ledger_pb2 as pb

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def timestamp(at: datetime | None) -> Timestamp | None:
    """``at`` to the microsecond; nothing for ``None``."""
    if at is None:
        return None
    reply = Timestamp()
    _write_time(at, reply)
    return reply


def _write_time(at: datetime, reply: Timestamp) -> None:
    reply.seconds, microseconds = divmod((at - _EPOCH) // _MICROSECOND, 1_000_000)
    reply.nanos = microseconds * 1000


def amount(currency: str, value: str) -> pb.Amount:
    """``value``, a decimal string, of ``currency``."""
    return pb.Amount(currency=currency, value=value)


def write_balance(balance: Balance, reply: pb.Balance) -> None:
    """Write the balance into ``reply``, which is empty.

    In place: messages made apart and copied into each other take more than twice as long.
    """
    reply.user_id = balance.user_id
    reply.version = balance.version
    told = reply.amount
    told.currency = balance.currency
    told.value = balance.value
    if balance.posted_at is not None:
        _write_time(balance.posted_at, reply.posted_at)


def reward(reward: RecordedReward) -> pb.Reward:
    """The reward, with its code if whoever asks may see that."""
    posting, taken_back = None, None
    if (booked := reward.posting) is not None:
        posting = _posting(booked)
        if reward.reversed is not None:
            taken_back = amount(booked.currency, reward.reversed)
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
        expires_at=timestamp(reward.expires_at),
        recorded_at=timestamp(reward.recorded_at),
        posting=posting,
        code=(reward.code or "") if Scope.CODES in calling.get().scopes else "",
        reversed=taken_back,
    )


_KINDS = {
    CorrectionKind.REVERSAL: pb.CORRECTION_KIND_REVERSAL,
    CorrectionKind.ADJUSTMENT: pb.CORRECTION_KIND_ADJUSTMENT,
}


def correction(corrected: Corrected, rewards_before: int = 0) -> pb.Correction:
    """The correction, and how many rewards of its message come before it."""
    return pb.Correction(
        key=corrected.key,
        kind=_KINDS[corrected.kind],
        reward_id=corrected.reward_id or "",
        user_id=corrected.user_id,
        reason=corrected.reason,
        actor=corrected.actor,
        approver=corrected.approver or "",
        posting=_posting(corrected),
        rewards_before=rewards_before,
    )


def line(line: Line, rewards_before: int) -> pb.Reward | pb.Correction:
    """The reward or the correction, and of that how many rewards of its message come before it."""
    if isinstance(line, RecordedReward):
        return reward(line)
    return correction(line.corrected, rewards_before)


def _posting(booked: Booked | Corrected) -> pb.Posting:
    return pb.Posting(
        debit_account=booked.debit_account,
        credit_account=booked.credit_account,
        amount=amount(booked.currency, booked.amount),
        version=booked.version,
        balance_after=amount(booked.currency, booked.balance_after),
        posted_at=timestamp(booked.posted_at),
    )


def add(
    response: pb.ListRewardsResponse | pb.WatchRewardsResponse, told: pb.Reward | pb.Correction
) -> None:
    """Add what comes next in ``response``."""
    if isinstance(told, pb.Reward):
        response.rewards.append(told)
    else:
        response.corrections.append(told)
