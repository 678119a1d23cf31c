"""One frozen settings object per process, read once from the environment."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LOG_KEY_SIZE_MIN, LOG_KEY_SIZE_MAX = 16, 64


class InvalidSetting(Exception):
    """A setting cannot be used: ``name`` says which, ``reason`` why; the value stays unsaid."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name = name
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Settings:
    """What the ledger's own processes are told from outside."""

    database_url: str | None
    """``DATABASE_URL``: a libpq URI or conninfo; ``None`` means the embedded Postgres."""
    data_directory: Path
    """``LEDGER_DATA``: where `ledger run` keeps the embedded Postgres and its own files."""
    bind: str
    """``LEDGER_BIND``: host and port of the gRPC service."""
    processes: int
    """``LEDGER_PROCESSES``: how many processes serve gRPC on the same port; 0: one per core."""


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings that ``environment`` holds; raises ``InvalidSetting``."""
    return Settings(
        database_url=environment.get("DATABASE_URL") or None,
        data_directory=Path(environment.get("LEDGER_DATA") or ".data").absolute(),
        bind=address(environment, "LEDGER_BIND", "127.0.0.1:50051"),
        processes=whole_number(environment, "LEDGER_PROCESSES", 1, minimum=0, maximum=64),
    )


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """The files of the service's TLS; kept out of reprs, as a path may be a misplaced secret."""

    certificate: str = field(repr=False)
    """``LEDGER_TLS_CERTIFICATE``: the service's certificate chain, PEM."""
    key: str = field(repr=False)
    """``LEDGER_TLS_KEY``: its key, PEM, not encrypted."""
    client_authorities: str | None = field(repr=False)
    """``LEDGER_TLS_CLIENT_AUTHORITIES``: who signs the certificates that callers must have, PEM."""


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Who may ask, and over what."""

    tls: TlsSettings | None = None
    callers: str | None = field(default=None, repr=False)
    """``LEDGER_CALLERS``: the TOML file of those who may ask."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is told of calls or deliveries, one JSON line for each."""

    is_on: bool
    """``LEDGER_LOG`` or ``INGRESS_LOG``: ``json`` or ``off``."""
    key: bytes = field(repr=False)
    """``LEDGER_LOG_KEY`` or ``INGRESS_LOG_KEY``: what users are hashed with; random if unset."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What the gRPC service is told besides ``Settings``."""

    access: AccessSettings = AccessSettings()
    log: LogSettings = LogSettings(is_on=False, key=b"")
    health_bind: str | None = None
    """``LEDGER_HEALTH_BIND``: where health alone is served too, without TLS; nowhere if unset."""
    metrics_bind: str | None = None
    """``LEDGER_METRICS_BIND``: where ``/metrics`` is served; nowhere if empty."""
    corrects: bool = False
    """``LEDGER_CORRECTIONS``: whether callers may correct, ``on`` or ``off``."""


def read_serve_settings(environment: Mapping[str, str] = os.environ) -> ServeSettings:
    """The settings of the gRPC service; raises ``InvalidSetting``."""
    access = read_access_settings(environment)
    corrections = environment.get("LEDGER_CORRECTIONS") or "off"
    if corrections not in {"on", "off"}:
        raise InvalidSetting("LEDGER_CORRECTIONS", "must be on or off")
    if corrections == "on" and access.callers is None:
        raise InvalidSetting(
            "LEDGER_CORRECTIONS",
            "needs LEDGER_CALLERS beside it: who corrects is kept in the books by name",
        )
    return ServeSettings(
        access=access,
        log=read_log_settings(environment, "LEDGER_LOG", "LEDGER_LOG_KEY"),
        health_bind=address_or_none(environment, "LEDGER_HEALTH_BIND", ""),
        metrics_bind=address_or_none(environment, "LEDGER_METRICS_BIND", "127.0.0.1:9465"),
        corrects=corrections == "on",
    )


def read_access_settings(environment: Mapping[str, str]) -> AccessSettings:
    """Who may ask, and over what; raises ``InvalidSetting``."""
    certificate = environment.get("LEDGER_TLS_CERTIFICATE")
    key = environment.get("LEDGER_TLS_KEY")
    authorities = environment.get("LEDGER_TLS_CLIENT_AUTHORITIES")
    tls = None
    if certificate and key:
        tls = TlsSettings(certificate, key, authorities or None)
    elif certificate:
        raise InvalidSetting("LEDGER_TLS_KEY", "is required beside LEDGER_TLS_CERTIFICATE")
    elif key or authorities:
        raise InvalidSetting(
            "LEDGER_TLS_CERTIFICATE", "is required beside the others of LEDGER_TLS"
        )
    return AccessSettings(tls, environment.get("LEDGER_CALLERS") or None)


def read_log_settings(environment: Mapping[str, str], mode_name: str, key_name: str) -> LogSettings:
    """The settings of one log; raises ``InvalidSetting``."""
    mode = environment.get(mode_name) or "json"
    if mode not in {"json", "off"}:
        raise InvalidSetting(mode_name, "must be json or off")
    key = os.fsencode(environment.get(key_name, ""))
    if key and not LOG_KEY_SIZE_MIN <= len(key) <= LOG_KEY_SIZE_MAX:
        raise InvalidSetting(key_name, f"must have {LOG_KEY_SIZE_MIN} to {LOG_KEY_SIZE_MAX} bytes")
    return LogSettings(mode == "json", key or secrets.token_bytes(32))


def whole_number(
    environment: Mapping[str, str], name: str, default: int, *, minimum: int, maximum: int
) -> int:
    """The setting ``name`` between its bounds; raises ``InvalidSetting``."""
    text = environment.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and minimum <= int(text[:20]) <= maximum):
        raise InvalidSetting(name, f"must be a whole number from {minimum} to {maximum}")
    return int(text)


def address(environment: Mapping[str, str], name: str, default: str) -> str:
    """The setting ``name`` as ``host:port``; raises ``InvalidSetting``."""
    text = environment.get(name) or default
    host, _, port = text.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and int(port[:10]) <= 65535):
        raise InvalidSetting(name, "must be host:port, such as 127.0.0.1:8080 or [::1]:8080")
    return text


def address_or_none(environment: Mapping[str, str], name: str, default: str) -> str | None:
    """The setting ``name`` as ``host:port``, ``None`` if it is empty; raises ``InvalidSetting``."""
    return address(environment, name, default) if environment.get(name, default) else None
