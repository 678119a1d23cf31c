"""The believed text → a reward.

What decides the money must be right, or the delivery is refused: the identifiers, the amount, the
currency, the reward type, the code. Everything else is for display: what is not of the documented
type is left out of the columns, and never stops a reward; it stays in the believed bytes.

Where in the body each of them is found, the mapping says.
"""

import json
import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

import msgspec

from ingress.canonical import is_too_deep
from ingress.errors import NotAReward, NotJson
from ingress.mapping import Mapping
from ingress.source import EXPIRY_MAX, NUDGE, BodyPath
from ledger.errors import InvalidAmount
from ledger.money import CURRENCY_CODE, exact
from ledger.reward import IDENTIFIER_LENGTH_MAX, Reward, is_posted

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""What JSON can spell and Postgres's text cannot hold."""

TOO_BIG = float("inf")
"""A number whose exponent no ``Decimal`` can hold: no amount, and ``null`` when it is written."""

_AMOUNT_STRING = re.compile(r"-?[0-9]+(\.[0-9]+)?")
"""The whole of a string that can be an amount: digits, with no exponent and no separators."""


def read_reward(text: bytes, mapping: Mapping) -> Reward | None:
    """The reward that the believed ``text`` tells of; ``None`` when it is a nudge, not a reward.

    Raises ``NotJson``, or ``NotAReward`` with the path at which something is wrong.
    """
    told = parse(text)
    if not isinstance(told, dict):
        raise NotAReward("", "is not an object")
    (
        reward_id, user_id, campaign_id, type_, reward_type, reward_name, amount, currency, code,
        status, transaction_id, expiry, category, details, body, tnc, webhook_type,
    ) = mapping.values(told)  # fmt: skip
    if webhook_type == NUDGE:
        return None
    try:
        currency = _currency(currency)
        amount = _amount(amount, mapping.amount_strings)
        reward_type = _deciding("reward_type", reward_type)
        campaign_id = _identifier("campaign_id", campaign_id)
        if not is_posted(reward_type, amount):
            currency = None
        elif currency is None:
            currency = mapping.currency_instead(campaign_id, reward_type)
        return Reward(
            reward_id=_identifier("reward_id", reward_id),
            user_id=_identifier("user_id", user_id),
            campaign_id=campaign_id,
            type=_display(type_),
            reward_type=reward_type,
            reward_name=_display(reward_name),
            reward_amount=amount,
            currency=currency,
            code=_deciding("code", code),
            status=_display(status),
            transaction_id=_display(transaction_id),
            reward_expires_at=_expiry(expiry),
            reward_category=_display(category),
            details=_json(details) if details and isinstance(details, dict) else None,
            body=_display(body),
            tnc=_json(tnc) if isinstance(tnc, list) else None,
            webhook_type=_display(webhook_type),
            believed_bytes=text,
        )
    except _Unreadable as wrong:
        raise _refusal(told, mapping, wrong.field, wrong.reason) from None


class _Unreadable(Exception):
    """The value for the reward's ``field`` cannot be used."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


def _refusal(told: dict[str, Any], mapping: Mapping, field: str, reason: str) -> NotAReward:
    """What is wrong, at the first step of the path of ``field`` at which it is."""
    source = mapping.sources[field]
    keys = source.keys if isinstance(source, BodyPath) else ()
    value: Any = told
    for depth, key in enumerate(keys):
        if value is not None and not isinstance(value, dict):
            return NotAReward(str(BodyPath(keys[:depth])), "is not an object")
        if value is None or key not in value:
            reason = "is missing"
            break
        value = value[key]
    return NotAReward(str(BodyPath(keys)), reason)


def parse(text: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """The JSON value of ``text``, numbers exact; raises ``NotJson``, or ``NotAReward``.

    A number is an ``int`` or a ``Decimal``, or ``TOO_BIG``. A key that stands twice in an object
    is refused: two readers could see two rewards in it. So is what is nested too deep.
    """
    if is_too_deep(text):
        raise NotJson
    try:
        # A text that can be written again from its value, byte for byte, holds nothing that the
        # value does not: no key twice, no digit lost. Nearly every text is such a one, and what
        # sees all that in any text takes four times as long.
        value = _FAST_DECODER.decode(text)
        if _ENCODER.encode(value) == text:
            return value
    except ValueError:
        pass
    try:
        return _DECODER.decode(text.decode())
    except ValueError:
        raise NotJson from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    told = dict(pairs)
    if len(told) != len(pairs):
        raise NotAReward("", "has a key twice")
    return told


def _number(literal: str) -> Decimal | float:
    try:
        return Decimal(literal)
    except InvalidOperation:
        return TOO_BIG


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError


_DECODER = json.JSONDecoder(
    parse_int=_number,
    parse_float=_number,
    parse_constant=_refuse_constant,
    object_pairs_hook=_unique,
)
_FAST_DECODER = msgspec.json.Decoder(float_hook=_number)
_ENCODER = msgspec.json.Encoder(decimal_format="number")


def _identifier(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise _Unreadable(field, "is not a string")
    if not 0 < len(value) <= IDENTIFIER_LENGTH_MAX:
        raise _Unreadable(field, f"is not 1 to {IDENTIFIER_LENGTH_MAX} characters long")
    if not _is_storable(value):
        raise _Unreadable(field, "holds a NUL or a lone surrogate")
    return value


def _deciding(field: str, value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _Unreadable(field, "is not a string")
    if not _is_storable(value):
        raise _Unreadable(field, "holds a NUL or a lone surrogate")
    return value


def _amount(value: object, may_be_string: bool) -> Decimal | None:
    if value is None:
        return None
    # What nearly every reward has: a whole number of fewer digits than the bound.
    if type(value) is int and 0 <= value < 2**64:
        return Decimal(value)
    if may_be_string and isinstance(value, str) and _AMOUNT_STRING.fullmatch(value):
        value = Decimal(value)
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        raise _Unreadable("reward_amount", "is not a number that can be an amount")
    try:
        return exact(Decimal(value))
    except InvalidAmount:
        raise _Unreadable("reward_amount", "is negative or has too many digits") from None


def _currency(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _Unreadable("currency", "is not a string")
    code = value.upper()
    if not value.isascii() or CURRENCY_CODE.fullmatch(code) is None:
        raise _Unreadable("currency", "is not a currency's code")
    return code


def _display(value: object) -> str | None:
    return _storable_text(value) if isinstance(value, str) else None


def _expiry(value: object) -> datetime | None:
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        return None
    return datetime.fromtimestamp(int(value), UTC) if 0 <= value <= EXPIRY_MAX else None


def _json(value: object) -> str:
    """The JSON text of ``value`` that Postgres can hold."""
    try:
        text = _ENCODER.encode(value)
        if b"\\u0000" not in text:
            return text.decode()
    except UnicodeEncodeError:
        pass
    return _ENCODER.encode(_storable(value)).decode()


def _storable(value: object) -> object:
    if isinstance(value, str):
        return _storable_text(value)
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_storable(item) for item in value]
    return value


def _storable_text(text: str) -> str:
    return text if _is_storable(text) else _UNSTORABLE.sub("\ufffd", text)


def _is_storable(text: str) -> bool:
    # Nothing unstorable is printable, and that is known much sooner.
    return text.isprintable() or _UNSTORABLE.search(text) is None
