"""What the ingress is told from outside, read once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from ingress.signature import Token
from ledger.config import InvalidSetting, address, whole_number
from ledger.money import CURRENCY_CODE

UNSIGNED_ALLOWED = "yes, anybody may post rewards"
"""What ``INGRESS_ALLOW_UNSIGNED`` must say, word for word."""


@dataclass(frozen=True, slots=True)
class IngressSettings:
    """The settings of one ingress process."""

    tokens: tuple[Token, ...]
    """``INGRESS_TOKEN``, then ``INGRESS_TOKEN_PREVIOUS`` until its ``…_NOT_AFTER``.

    Empty only when unsigned deliveries are allowed.
    """
    database_url: str
    """``DATABASE_URL``: a libpq URI or conninfo whose login may become ``ledger_writer``."""
    default_currency: str
    """``INGRESS_DEFAULT_CURRENCY``: what an amount is counted in when the sender does not say."""
    body_size_max_bytes: int
    """``INGRESS_BODY_SIZE_MAX_BYTES``."""


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """How gunicorn listens."""

    bind: str
    """``INGRESS_BIND``: host and port."""
    workers: int
    """``INGRESS_WORKERS``: processes; each posts through its own connection."""


def read_listen_settings(environment: Mapping[str, str] = os.environ) -> ListenSettings:
    """How to listen; raises ``InvalidSetting``."""
    return ListenSettings(
        bind=address(environment, "INGRESS_BIND", "127.0.0.1:8080"),
        workers=whole_number(environment, "INGRESS_WORKERS", 1, minimum=1, maximum=64),
    )


def read_settings(environment: Mapping[str, str] = os.environ) -> IngressSettings:
    """The settings that ``environment`` holds; raises ``InvalidSetting``.

    Closed by default: without a token it refuses, unless unsigned deliveries are allowed in so
    many words.
    """
    database_url = environment.get("DATABASE_URL")
    if not database_url:
        raise InvalidSetting("DATABASE_URL", "is required")
    currency = environment.get("INGRESS_DEFAULT_CURRENCY") or "POINTS"
    if CURRENCY_CODE.fullmatch(currency) is None:
        raise InvalidSetting("INGRESS_DEFAULT_CURRENCY", "must be a currency's code")
    return IngressSettings(
        tokens=_tokens(environment),
        database_url=database_url,
        default_currency=currency,
        body_size_max_bytes=whole_number(
            environment,
            "INGRESS_BODY_SIZE_MAX_BYTES",
            64 * 1024,
            minimum=1024,
            maximum=16 * 1024 * 1024,
        ),
    )


def _tokens(environment: Mapping[str, str]) -> tuple[Token, ...]:
    current = environment.get("INGRESS_TOKEN")
    previous = environment.get("INGRESS_TOKEN_PREVIOUS")
    unsigned = environment.get("INGRESS_ALLOW_UNSIGNED")
    if unsigned and unsigned != UNSIGNED_ALLOWED:
        raise InvalidSetting("INGRESS_ALLOW_UNSIGNED", f"can only be: {UNSIGNED_ALLOWED}")
    if unsigned and (current or previous):
        raise InvalidSetting("INGRESS_ALLOW_UNSIGNED", "contradicts INGRESS_TOKEN: unset one")
    if unsigned:
        return ()
    if not current:
        raise InvalidSetting("INGRESS_TOKEN", "is required")
    tokens = [Token("current", current.encode())]
    if previous:
        tokens.append(Token("previous", previous.encode(), _not_after(environment)))
    return tuple(tokens)


def _not_after(environment: Mapping[str, str]) -> datetime:
    name = "INGRESS_TOKEN_PREVIOUS_NOT_AFTER"
    try:
        not_after = datetime.fromisoformat(environment.get(name, ""))
    except ValueError:
        not_after = None
    if not_after is None or not_after.tzinfo is None:
        raise InvalidSetting(name, "must be a time with its zone, such as 2026-12-31T00:00:00Z")
    return not_after
