"""One frozen settings object per process, read once from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


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
    """``LEDGER_PROCESSES``: how many processes serve gRPC on the same port."""


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings that ``environment`` holds; raises ``InvalidSetting``."""
    return Settings(
        database_url=environment.get("DATABASE_URL") or None,
        data_directory=Path(environment.get("LEDGER_DATA") or ".data").absolute(),
        bind=address(environment, "LEDGER_BIND", "127.0.0.1:50051"),
        processes=whole_number(environment, "LEDGER_PROCESSES", 1, minimum=1, maximum=64),
    )


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
