"""What the ingress is told from outside, read once."""

import os
from collections.abc import Mapping as Environment
from dataclasses import dataclass, field

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ingress.limiting import FailureLimit, read_failure_limit
from ingress.mapping import Mapping, read_mapping
from ingress.peers import PeerPolicy, read_peer_policy
from ingress.spooling import SpoolSettings, read_spool_settings
from ingress.tokens import Tokens, read_tokens
from ledger.config import InvalidSetting, address, whole_number


@dataclass(frozen=True, slots=True)
class IngressSettings:
    """The settings of one ingress process."""

    tokens: Tokens
    """``INGRESS_TOKEN``, ``INGRESS_TOKEN_PREVIOUS`` and their like."""
    database_url: str = field(repr=False)
    """``DATABASE_URL``: a libpq URI or conninfo whose login may become ``ledger_writer``.

    Kept out of the repr, and so out of logs: it may hold a password.
    """
    mapping: Mapping
    """``INGRESS_MAPPING`` and ``INGRESS_DEFAULT_CURRENCY``: where a body holds what."""
    body_size_max_bytes: int
    """``INGRESS_BODY_SIZE_MAX_BYTES``."""
    peers: PeerPolicy
    """``INGRESS_ADDRESSES`` and its like: who may speak."""
    spool: SpoolSettings | None
    """``INGRESS_SPOOL`` and its size: where rewards wait while Postgres is away."""
    failures: FailureLimit
    """``INGRESS_FAILURES_PER_MINUTE``, for each address."""


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """How gunicorn listens."""

    bind: str
    """``INGRESS_BIND``: host and port."""
    workers: int
    """``INGRESS_WORKERS``: processes; each posts through its own connection."""


def read_listen_settings(environment: Environment[str, str] = os.environ) -> ListenSettings:
    """How to listen; raises ``InvalidSetting``."""
    return ListenSettings(
        bind=address(environment, "INGRESS_BIND", "127.0.0.1:8080"),
        workers=whole_number(environment, "INGRESS_WORKERS", 1, minimum=1, maximum=64),
    )


def read_settings(environment: Environment[str, str] = os.environ) -> IngressSettings:
    """The settings that ``environment`` holds; raises ``InvalidSetting``.

    Closed by default: without a token it refuses, unless unsigned deliveries are allowed in so
    many words.
    """
    tokens = read_tokens(environment)
    database_url = read_database_url(environment)
    return IngressSettings(
        tokens=tokens,
        database_url=database_url,
        mapping=read_mapping(environment),
        body_size_max_bytes=whole_number(
            environment,
            "INGRESS_BODY_SIZE_MAX_BYTES",
            64 * 1024,
            minimum=1024,
            maximum=1024 * 1024,
        ),
        peers=read_peer_policy(environment),
        spool=read_spool_settings(environment),
        failures=read_failure_limit(environment),
    )


def read_database_url(environment: Environment[str, str]) -> str:
    """``DATABASE_URL``, which is required here; raises ``InvalidSetting``."""
    database_url = environment.get("DATABASE_URL")
    if not database_url:
        raise InvalidSetting("DATABASE_URL", "is required")
    try:
        conninfo_to_dict(database_url)
    except psycopg.ProgrammingError:
        # Without its cause, which quotes what may be the password.
        raise InvalidSetting("DATABASE_URL", "is not a libpq URI or conninfo") from None
    return database_url
