"""The two places that a value of a reward can come from: a path in the body, or a constant."""

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

from ledger.errors import InvalidAmount
from ledger.money import CURRENCY_CODE, exact
from ledger.reward import IDENTIFIER_LENGTH_MAX

NUDGE = "nudge"
"""The ``webhookType`` of the vendor's other webhook, whose deliveries are ignored."""

EXPIRY_MAX = 253_402_300_799
"""The last second of the year 9999, which is as far as ``datetime`` goes."""

# A key without quotes holds nothing that could be meant as quoting, escaping or an index.
_BARE_KEY = re.compile(r"""[^\s."'\\\[\]]+""")
_KEY = re.compile(rf'{_BARE_KEY.pattern}|"(?:[^"\\]|\\.)*"')
_PATH = re.compile(rf"(?:{_KEY.pattern})(?:\.(?:{_KEY.pattern}))*")


class BodyPath(NamedTuple):
    """The keys that lead from a body to one of its values, through objects only."""

    keys: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> "BodyPath":
        """The path that ``text`` spells: keys joined by dots; raises ``ValueError`` if none.

        A key that holds a dot, white space, a quote, a backslash or a square bracket stands in
        double quotes, as JSON spells it: ``details."price.currency"``.
        """
        try:
            if _PATH.fullmatch(text) is None:
                raise ValueError
            keys = _KEY.findall(text)
            return cls(tuple(json.loads(key) if key.startswith('"') else key for key in keys))
        except ValueError:
            raise ValueError("must be keys joined by dots, such as details.currency") from None

    def __str__(self) -> str:
        return ".".join(map(_spelled, self.keys))


def _spelled(key: str) -> str:
    # What is not printable is escaped: a path may stand in logs, answers and columns.
    bare = key.isprintable() and _BARE_KEY.fullmatch(key) is not None
    return key if bare else json.dumps(key)


class Constant(NamedTuple):
    """A value that is taken as if every body held it."""

    value: Any

    @classmethod
    def read(cls, field: str, value: object) -> "Constant":
        """The constant for ``field``; raises ``ValueError`` with what it must be instead."""
        if field in _TELLS_APART:
            raise ValueError("must come from the body: a constant is the same for every reward")
        fits, what = _CONSTANTS.get(field, (_is_text, "a string"))
        if not fits(value):
            raise ValueError(f"must be {what}")
        return cls(value)


Source = BodyPath | Constant


def is_currency(value: object) -> bool:
    """Whether ``value`` is a currency's code, in capitals."""
    return isinstance(value, str) and CURRENCY_CODE.fullmatch(value) is not None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_identifier(value: object) -> bool:
    return isinstance(value, str) and _is_text(value) and 0 < len(value) <= IDENTIFIER_LENGTH_MAX


def _is_amount(value: object) -> bool:
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        return False
    try:
        exact(Decimal(value))
    except InvalidAmount:
        return False
    return True


def _is_expiry(value: object) -> bool:
    return type(value) is int and -1 <= value <= EXPIRY_MAX


_TELLS_APART = {"reward_id", "user_id", "transaction_id"}
_CONSTANTS: dict[str, tuple[Callable[[object], bool], str]] = {
    "campaign_id": (_is_identifier, f"a string of 1 to {IDENTIFIER_LENGTH_MAX} characters"),
    "reward_amount": (_is_amount, "a number that can be an amount"),
    "currency": (is_currency, "a currency's code"),
    "reward_expires_at": (_is_expiry, "whole seconds since 1970, or -1 for never"),
    "details": (
        lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
        "a table of strings",
    ),
    "tnc": (
        lambda value: isinstance(value, list) and all(map(_is_text, value)),
        "a list of strings",
    ),
    "webhook_type": (
        lambda value: _is_text(value) and value != NUDGE,
        f"a string, but not {NUDGE}: every delivery would be ignored",
    ),
}
