"""Rewards that a report has and the books do not: posted from its lines, through the one door.

What is kept as the reward's text is what a delivery of it would say, under the default names of
a body, and the line itself beside it. So whoever reads that text again reads the same reward, and
a delivery of it that comes after all is a replay.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ledger.database import Connection
from ledger.errors import IdempotencyConflict, InvalidAmount, Refused, UnknownCurrency
from ledger.money import CURRENCY_CODE
from ledger.operations.report import Line
from ledger.reward import Reward, is_posted
from ledger.writing import Status, post

WEBHOOK_TYPE = "import"
"""Marks a reward that was posted from a report."""

_encode = msgspec.json.Encoder(decimal_format="number", order="sorted").encode


class NotImported(NamedTuple):
    """A line whose reward was not posted."""

    line: int
    reward_id: str
    why: str


class Imported(NamedTuple):
    """What became of lines that were to be imported."""

    counts: dict[Status, int]
    """Of replayed ones the reward came meanwhile, by another way."""
    refused: list[NotImported]


WHY: dict[type[Refused], str] = {
    UnknownCurrency: "nobody registered its currency: see `ledger currency add`",
    InvalidAmount: "its amount is negative, or has more decimals than its currency",
    IdempotencyConflict: "another reward of this rewardId came meanwhile: reconcile again",
}
"""Why the door refused a line, and what to do."""


async def import_lines(
    connection: Connection, lines: Sequence[Line], file_sha256: bytes
) -> Imported:
    """Post the rewards of ``lines``, each once, whatever else posts meanwhile."""
    counts = dict.fromkeys(Status, 0)
    refused, told = [], []
    for line in lines:
        wrong = _wrong(line)
        if wrong is None:
            told.append((line, reward(line, file_sha256)))
        else:
            refused.append(NotImported(line.number, line.reward_id, wrong))
    outcomes = await post(connection, [of_line for _, of_line in told])
    for (line, _), outcome in zip(told, outcomes, strict=True):
        if isinstance(outcome, Refused):
            refused.append(NotImported(line.number, line.reward_id, WHY[type(outcome)]))
        else:
            counts[outcome.status] += 1
    return Imported(counts, refused)


def _wrong(line: Line) -> str | None:
    if not line.user_id:
        return "it says no user"
    if not line.campaign_id:
        return "it says no campaign"
    if line.amount is not None and line.amount < 0:
        return WHY[InvalidAmount]
    is_named = CURRENCY_CODE.fullmatch(line.currency) is not None
    if line.currency and not is_named:
        return WHY[UnknownCurrency]
    if not is_named and is_posted(line.reward_type or None, line.amount):
        return "it says no currency"
    return None


def reward(line: Line, file_sha256: bytes) -> Reward:
    """The reward that ``line`` of a report tells of."""
    currency = line.currency or None
    reward_type = line.reward_type or None
    body: dict[str, Any] = {
        "campaignId": line.campaign_id,
        "code": line.code or None,
        "details": {"currency": currency} if currency else None,
        "rewardAmount": line.amount,
        "rewardId": line.reward_id,
        "rewardName": line.reward_name or None,
        "rewardType": reward_type,
        "type": line.type or None,
        "userId": line.user_id,
        "webhookType": WEBHOOK_TYPE,
        "report": {"line": line.number, "sha256": file_sha256.hex(), "told": line.cells},
    }
    said = {name: value for name, value in body.items() if value is not None}
    return Reward(
        reward_id=line.reward_id,
        user_id=line.user_id,
        campaign_id=line.campaign_id,
        type=line.type or None,
        reward_type=reward_type,
        reward_name=line.reward_name or None,
        reward_amount=line.amount,
        currency=currency if is_posted(reward_type, line.amount) else None,
        code=line.code or None,
        status=None,
        transaction_id=None,
        reward_expires_at=None,
        reward_category=None,
        details=_encode(said["details"]).decode() if "details" in said else None,
        body=None,
        tnc=None,
        webhook_type=WEBHOOK_TYPE,
        believed_bytes=_encode(said),
    )
