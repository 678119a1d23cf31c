"""Where in a believed body each part of a reward is found, and what stands in for what is missing.

CustomerGlu lets its customer reshape the body, so this is configuration: a TOML file that
``INGRESS_MAPPING`` names. ``ingress/mapping.toml`` shows all that can stand in one; what a file
does not say stays as the vendor's page on the rewards webhook has it.
"""

import hashlib
import json
import os
from collections.abc import Mapping as Names
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingress.source import BodyPath, Constant, Source, is_currency
from ingress.toml_lines import InvalidToml, line_of, load
from ledger.config import InvalidSetting
from ledger.reward import Reward

FIELDS = Reward._fields[:-1]
"""What is read from a body: everything of a reward except the believed bytes themselves."""

VENDOR: dict[str, Source] = {
    "reward_id": BodyPath(("rewardId",)),
    "user_id": BodyPath(("userId",)),
    "campaign_id": BodyPath(("campaignId",)),
    "type": BodyPath(("type",)),
    "reward_type": BodyPath(("rewardType",)),
    "reward_name": BodyPath(("rewardName",)),
    "reward_amount": BodyPath(("rewardAmount",)),
    "currency": BodyPath(("details", "currency")),
    "code": BodyPath(("code",)),
    "status": BodyPath(("status",)),
    "transaction_id": BodyPath(("transactionId",)),
    "reward_expires_at": BodyPath(("rewardExpiry",)),
    "reward_category": BodyPath(("details", "rewardCategory")),
    "details": BodyPath(("details",)),
    "body": BodyPath(("body",)),
    "tnc": BodyPath(("tnc",)),
    "webhook_type": BodyPath(("webhookType",)),
}
"""CustomerGlu's own names, as its page on the rewards webhook gives them."""

FILE_SIZE_MAX_BYTES = 64 * 1024

NOT_AN_OBJECT: Any = object()
"""Stands for a value whose path leads through something that is not an object.

It is of no type that a body can hold, so whoever reads it leaves it out or refuses it.
"""


@dataclass(frozen=True, slots=True)
class Mapping:
    """Where each of ``FIELDS`` comes from, and the currencies of bodies that name none."""

    sources: Names[str, Source] = field(default_factory=lambda: VENDOR)
    default_currency: str = "POINTS"
    """What an amount is counted in when neither its body nor the two tables say."""
    default_currency_by_reward_type: Names[str, str] = field(default_factory=dict)
    default_currency_by_campaign: Names[str, str] = field(default_factory=dict)
    """Asked before the one by reward type."""
    amount_strings: bool = False
    """Whether an amount may be a string of digits."""
    digest: str = field(init=False, repr=False, compare=False)
    """The same for two mappings that read every body alike, whatever their files look like."""
    _first_keys: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _further_keys: tuple[tuple[int, tuple[str, ...]], ...] = field(
        init=False, repr=False, compare=False
    )
    _constants: tuple[tuple[int, Any], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Sorted out once, so that a delivery pays for one look-up a key and for nothing else.
        first_keys, further_keys, constants = [], [], []
        for place, name in enumerate(FIELDS):
            match self.sources[name]:
                case BodyPath((first, *further)):
                    first_keys.append(first)
                    if further:
                        further_keys.append((place, tuple(further)))
                case Constant(value):
                    first_keys.append("")
                    constants.append((place, value))
        object.__setattr__(self, "_first_keys", tuple(first_keys))
        object.__setattr__(self, "_further_keys", tuple(further_keys))
        object.__setattr__(self, "_constants", tuple(constants))
        object.__setattr__(self, "digest", self._make_digest())

    def _make_digest(self) -> str:
        sources = {
            name: list(source.keys) if isinstance(source, BodyPath) else {"constant": source.value}
            for name, source in self.sources.items()
        }
        currencies = [
            self.default_currency,
            dict(self.default_currency_by_reward_type),
            dict(self.default_currency_by_campaign),
        ]
        told = json.dumps([sources, currencies, self.amount_strings], sort_keys=True, default=repr)
        return hashlib.sha256(told.encode()).hexdigest()

    def values(self, told: dict[str, Any]) -> list[Any]:
        """What the body ``told`` holds for each of ``FIELDS``, in their order.

        ``None`` stands for what it does not hold; see also ``NOT_AN_OBJECT``.
        """
        values = list(map(told.get, self._first_keys))
        for place, keys in self._further_keys:
            value = values[place]
            for key in keys:
                if value is None:
                    break
                value = value.get(key) if type(value) is dict else NOT_AN_OBJECT
            values[place] = value
        for place, value in self._constants:
            values[place] = value
        return values

    def currency_instead(self, campaign_id: str, reward_type: str | None) -> str:
        """What a reward is counted in when its body does not say."""
        return (
            self.default_currency_by_campaign.get(campaign_id)
            or self.default_currency_by_reward_type.get(reward_type or "")
            or self.default_currency
        )


def read_mapping(environment: Names[str, str] = os.environ) -> Mapping:
    """The mapping of ``INGRESS_MAPPING`` and ``INGRESS_DEFAULT_CURRENCY``.

    Raises ``InvalidSetting``, for a bad file with the line and what is wrong with it.
    """
    currency = environment.get("INGRESS_DEFAULT_CURRENCY") or None
    if currency is not None and not is_currency(currency):
        raise InvalidSetting("INGRESS_DEFAULT_CURRENCY", "must be a currency's code")
    name = environment.get("INGRESS_MAPPING")
    text = _text(Path(name)) if name else ""
    try:
        return _mapping(load(text), currency)
    except InvalidToml as error:
        reason = f"line {error.line}: {error.reason}"
    except _Wrong as wrong:
        reason = f"line {line_of(text, wrong.keys)}: {BodyPath(wrong.keys)} {wrong.reason}"
    raise InvalidSetting("INGRESS_MAPPING", reason)


class _Wrong(Exception):
    """What the file says under ``keys`` cannot be used."""

    def __init__(self, keys: tuple[str, ...], reason: str) -> None:
        super().__init__(keys, reason)
        self.keys = keys
        self.reason = reason


def _text(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            raw = opened.read(FILE_SIZE_MAX_BYTES + 1)
    except OSError as error:
        raise InvalidSetting("INGRESS_MAPPING", f"cannot be read: {error.strerror}") from None
    if len(raw) > FILE_SIZE_MAX_BYTES:
        raise InvalidSetting("INGRESS_MAPPING", f"is over {FILE_SIZE_MAX_BYTES} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidSetting("INGRESS_MAPPING", f"line {line}: is not UTF-8") from None


def _mapping(file: dict[str, Any], currency: str | None) -> Mapping:
    _table(file, (), ("amount_strings", "default_currency", "fields"))
    amount_strings = file.get("amount_strings", False)
    if not isinstance(amount_strings, bool):
        raise _Wrong(("amount_strings",), "must be true or false")
    fields = _table(file, ("fields",), FIELDS)
    sources = {**VENDOR, **{name: _source(name, told) for name, told in fields.items()}}
    if _is_within(sources["code"], sources["details"]):
        # Whichever of the two the file says; the other is the vendor's.
        name = "code" if "code" in fields else "details"
        raise _Wrong(("fields", name), "leads to a code in the details, which more may see than it")
    return Mapping(
        sources=sources,
        default_currency=_general_currency(file, currency),
        default_currency_by_reward_type=_currencies(file, "reward_type"),
        default_currency_by_campaign=_currencies(file, "campaign"),
        amount_strings=amount_strings,
    )


def _table(
    file: dict[str, Any], keys: tuple[str, ...], known: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """The table under ``keys``, empty when there is none; raises when not all in it is known."""
    table = file
    for depth, key in enumerate(keys, 1):
        table = table.get(key, {})
        if not isinstance(table, dict):
            raise _Wrong(keys[:depth], "must be a table")
    for key in table:
        if known is not None and key not in known:
            raise _Wrong((*keys, key), f"is not known; what is: {', '.join(known)}")
    return table


def _source(name: str, told: object) -> Source:
    keys = ("fields", name)
    try:
        if isinstance(told, str):
            return BodyPath.read(told)
        if isinstance(told, dict) and told.keys() == {"constant"}:
            return Constant.read(name, told["constant"])
    except ValueError as error:
        raise _Wrong(keys, str(error)) from None
    raise _Wrong(keys, "must be a path, or { constant = … }")


def _is_within(source: Source, other: Source) -> bool:
    """Whether what ``source`` leads to is a part of what ``other`` leads to, or all of it."""
    return (
        isinstance(source, BodyPath)
        and isinstance(other, BodyPath)
        and source.keys[: len(other.keys)] == other.keys
    )


def _general_currency(file: dict[str, Any], currency: str | None) -> str:
    keys = ("default_currency", "general")
    told = _table(file, keys[:1], ("general", "reward_type", "campaign"))
    if "general" not in told:
        return currency or Mapping().default_currency
    if not is_currency(told["general"]):
        raise _Wrong(keys, "must be a currency's code")
    if currency not in {None, told["general"]}:
        raise _Wrong(keys, "contradicts INGRESS_DEFAULT_CURRENCY: unset one")
    return str(told["general"])


def _currencies(file: dict[str, Any], table: str) -> dict[str, str]:
    keys = ("default_currency", table)
    told = _table(file, keys)
    for name, code in told.items():
        if not is_currency(code):
            raise _Wrong((*keys, name), "must be a currency's code")
    return told
