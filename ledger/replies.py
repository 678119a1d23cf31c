"""What is told: from values to messages.

Messages that many of a reply are made of are written where they stand: made apart and copied into
it, they take more than twice as long.
"""

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from ledger.callers import Scope, calling
from ledger.correction import Corrected, CorrectionKind
from ledger.history import Booked, Line, RecordedReward
from ledger.reading import Balance
from ledger.v1 import ledger_pb2 as pb

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def amount(currency: str, value: str) -> pb.Amount:
    """``value``, a decimal string, of ``currency``."""
    return pb.Amount(currency=currency, value=value)


def write_balance(balance: Balance, reply: pb.Balance) -> None:
    """Write the balance into ``reply``, which is empty."""
    reply.user_id = balance.user_id
    reply.version = balance.version
    _write_amount(balance.currency, balance.value, reply.amount)
    if balance.posted_at is not None:
        _write_time(balance.posted_at, reply.posted_at)


def write_reward(reward: RecordedReward, reply: pb.Reward) -> None:
    """Write the reward into ``reply``, which is empty; its code if whoever asks may see that."""
    reply.reward_id = reward.reward_id
    reply.user_id = reward.user_id
    reply.campaign_id = reward.campaign_id
    reply.type = reward.type or ""
    reply.reward_type = reward.reward_type or ""
    reply.reward_name = reward.reward_name or ""
    reply.status = reward.status or ""
    reply.transaction_id = reward.transaction_id or ""
    reply.category = reward.category or ""
    reply.details_json = reward.details or ""
    if reward.expires_at is not None:
        _write_time(reward.expires_at, reply.expires_at)
    _write_time(reward.recorded_at, reply.recorded_at)
    if reward.code and Scope.CODES in calling.get().scopes:
        reply.code = reward.code
    if (booked := reward.posting) is not None:
        _write_posting(booked, reply.posting)
        if reward.reversed is not None:
            _write_amount(booked.currency, reward.reversed, reply.reversed)


_KINDS = {
    CorrectionKind.REVERSAL: pb.CORRECTION_KIND_REVERSAL,
    CorrectionKind.ADJUSTMENT: pb.CORRECTION_KIND_ADJUSTMENT,
}


def write_correction(corrected: Corrected, reply: pb.Correction) -> None:
    """Write the correction into ``reply``, which is empty."""
    reply.key = corrected.key
    reply.kind = _KINDS[corrected.kind]
    reply.reward_id = corrected.reward_id or ""
    reply.user_id = corrected.user_id
    reply.reason = corrected.reason
    reply.actor = corrected.actor
    reply.approver = corrected.approver or ""
    _write_posting(corrected, reply.posting)


def add(
    line: Line, response: pb.ListRewardsResponse | pb.WatchRewardsResponse
) -> pb.Reward | pb.Correction:
    """Add the reward or the correction to ``response``, as what comes next."""
    if isinstance(line, RecordedReward):
        reward = response.rewards.add()
        write_reward(line, reward)
        return reward
    correction = response.corrections.add(rewards_before=len(response.rewards))
    write_correction(line.corrected, correction)
    return correction


def remove_last(line: Line, response: pb.ListRewardsResponse) -> None:
    """Undo ``add``."""
    del (response.rewards if isinstance(line, RecordedReward) else response.corrections)[-1]


def _write_posting(booked: Booked | Corrected, reply: pb.Posting) -> None:
    reply.debit_account = booked.debit_account
    reply.credit_account = booked.credit_account
    reply.version = booked.version
    _write_amount(booked.currency, booked.amount, reply.amount)
    _write_amount(booked.currency, booked.balance_after, reply.balance_after)
    _write_time(booked.posted_at, reply.posted_at)


def _write_amount(currency: str, value: str, reply: pb.Amount) -> None:
    reply.currency = currency
    reply.value = value


def _write_time(at: datetime, reply: Timestamp) -> None:
    reply.seconds, microseconds = divmod((at - _EPOCH) // _MICROSECOND, 1_000_000)
    reply.nanos = microseconds * 1000
