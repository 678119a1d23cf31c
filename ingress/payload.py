"""The believed text → a reward.

What decides the money must be right, or the delivery is refused: the identifiers, the amount, the
currency, the reward type, the code. Everything else is for display: what is not of the documented
type is left out of the columns, and never stops a reward; it stays in the believed bytes.

Field names are CustomerGlu's defaults, as its page on the rewards webhook gives them.
"""

import json
import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

import msgspec

from ingress.errors import NotAReward, NotJson
from ledger.errors import InvalidAmount
from ledger.money import CURRENCY_CODE, exact
from ledger.reward import IDENTIFIER_LENGTH_MAX, Reward, is_posted

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""What JSON can spell and Postgres's text cannot hold."""

_EXPIRY_MAX = 253_402_300_799
"""The last second of the year 9999, which is as far as ``datetime`` goes."""


def read_reward(text: bytes, default_currency: str) -> Reward | None:
    """The reward that the believed ``text`` tells of; ``None`` when it is a nudge, not a reward.

    Raises ``NotJson``, or ``NotAReward`` with the field that is wrong.
    """
    told = parse(text)
    if not isinstance(told, dict):
        raise NotAReward("", "is not an object")
    if told.get("webhookType") == "nudge":
        return None
    details = told.get("details")
    if details is None:
        details = {}
    elif not isinstance(details, dict):
        raise NotAReward("details", "is not an object")
    amount = _amount(told.get("rewardAmount"))
    reward_type = _deciding(told, "rewardType")
    currency = _currency(details) or default_currency
    return Reward(
        reward_id=_identifier(told, "rewardId"),
        user_id=_identifier(told, "userId"),
        campaign_id=_identifier(told, "campaignId"),
        type=_display(told, "type"),
        reward_type=reward_type,
        reward_name=_display(told, "rewardName"),
        reward_amount=amount,
        currency=currency if is_posted(reward_type, amount) else None,
        code=_deciding(told, "code"),
        status=_display(told, "status"),
        transaction_id=_display(told, "transactionId"),
        reward_expires_at=_expiry(told.get("rewardExpiry")),
        reward_category=_display(details, "rewardCategory"),
        details=_json(details) if details else None,
        body=_display(told, "body"),
        tnc=_json(tnc) if isinstance(tnc := told.get("tnc"), list) else None,
        webhook_type=_display(told, "webhookType"),
        believed_bytes=text,
    )


def parse(text: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """The JSON value of ``text`` with numbers as ``Decimal``; raises ``NotJson``, ``NotAReward``.

    A key that stands twice in an object is refused: two readers could see two rewards in it.
    """
    try:
        return _DECODER.decode(text.decode())
    except (ValueError, RecursionError):
        raise NotJson from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    told = dict(pairs)
    if len(told) != len(pairs):
        raise NotAReward("", "has a key twice")
    return told


def _number(literal: str) -> Decimal | None:
    try:
        return Decimal(literal)
    except InvalidOperation:
        # An exponent beyond what a Decimal can hold. JSON.parse makes it infinite, which
        # JSON.stringify writes as null.
        return None


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError


_DECODER = json.JSONDecoder(
    parse_int=_number,
    parse_float=_number,
    parse_constant=_refuse_constant,
    object_pairs_hook=_unique,
)
_ENCODER = msgspec.json.Encoder(decimal_format="number")


def _identifier(told: dict[str, Any], field: str) -> str:
    value = told.get(field)
    if not isinstance(value, str):
        raise NotAReward(field, "is not a string" if field in told else "is missing")
    if not 0 < len(value) <= IDENTIFIER_LENGTH_MAX:
        raise NotAReward(field, f"is not 1 to {IDENTIFIER_LENGTH_MAX} characters long")
    if _UNSTORABLE.search(value):
        raise NotAReward(field, "holds a NUL or a lone surrogate")
    return value


def _deciding(told: dict[str, Any], field: str) -> str | None:
    value = told.get(field)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise NotAReward(field, "is not a string")
    if _UNSTORABLE.search(value):
        raise NotAReward(field, "holds a NUL or a lone surrogate")
    return value


def _amount(value: object) -> Decimal | None:
    if value is None:
        return None
    if not isinstance(value, Decimal):
        raise NotAReward("rewardAmount", "is not a number")
    try:
        return exact(value)
    except InvalidAmount:
        raise NotAReward("rewardAmount", "is negative or has too many digits") from None


def _currency(details: dict[str, Any]) -> str | None:
    value = details.get("currency")
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise NotAReward("details.currency", "is not a string")
    code = value.upper()
    if not value.isascii() or CURRENCY_CODE.fullmatch(code) is None:
        raise NotAReward("details.currency", "is not a currency's code")
    return code


def _display(told: dict[str, Any], field: str) -> str | None:
    value = told.get(field)
    return _UNSTORABLE.sub("\ufffd", value) if isinstance(value, str) else None


def _expiry(value: object) -> datetime | None:
    if isinstance(value, Decimal) and 0 <= value <= _EXPIRY_MAX:
        return datetime.fromtimestamp(int(value), UTC)
    return None


def _json(value: object) -> str:
    try:
        text = _ENCODER.encode(value)
        if b"\\u0000" not in text:
            return text.decode()
    except UnicodeEncodeError:
        pass
    except RecursionError:
        raise NotJson from None
    return _ENCODER.encode(_storable(value)).decode()


def _storable(value: object) -> object:
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_storable(item) for item in value]
    return value
