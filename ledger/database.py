"""Connections and their timeouts; Postgres's errors → ours."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool, TooManyRequests

from ledger.errors import BrokenRule, DatabaseUnavailable, LedgerError, Overloaded

CONNECT_SECONDS_MAX = 2
"""libpq's own minimum is two seconds."""
POOL_SECONDS_MAX = 1.0
STATEMENT_SECONDS_MAX = 2
LOCK_SECONDS_MAX = 1

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class Role(StrEnum):
    """The database roles of the services: each can do its one job."""

    WRITER = "ledger_writer"
    READER = "ledger_reader"
    CORRECTOR = "ledger_corrector"
    CLOSER = "ledger_closer"


class WrongProcess(RuntimeError):
    """A pool was used in another process than the one that opened it.

    After a fork both processes would write to the same sockets and read each other's rows.
    """


_PLANS = {
    Role.WRITER: {"enable_nestloop": "off", "enable_seqscan": "off"},
    Role.READER: {
        "enable_bitmapscan": "off",
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
    },
    Role.CORRECTOR: {"enable_seqscan": "off"},
    Role.CLOSER: {},
}
"""How the services' few statements are planned: once, for every batch size and every table size.

Planning for each batch costs more than it finds. A plan that does not know the batch must not
loop over it, which would be quadratic; one that was made while the tables were empty must not go
on scanning them when they grow; one for a page of history must not collect the whole of it first,
nor walk through all that is newer.
"""


def conninfo(
    url: str,
    role: Role,
    *,
    statement_seconds_max: int = STATEMENT_SECONDS_MAX,
    is_service: bool = True,
) -> str:
    """``url`` with our timeouts, as ``role``.

    The role is a setting of the connection's start, so that no query runs before it. Whoever
    ``url`` logs in as must be that role or be allowed to become it. ``is_service`` fixes the plans
    of the services' statements; an operator's command asks other questions.
    """
    plans = {"plan_cache_mode": "force_generic_plan", **_PLANS[role]} if is_service else {}
    settings = {
        "role": role.value,
        "statement_timeout": f"{statement_seconds_max}s",
        "lock_timeout": f"{LOCK_SECONDS_MAX}s",
        "idle_in_transaction_session_timeout": "5s",
        "jit": "off",
        "timezone": "UTC",
        "bytea_output": "hex",
        **plans,
    }
    given = conninfo_to_dict(url)
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return make_conninfo(
        "",
        **{
            "connect_timeout": CONNECT_SECONDS_MAX,
            # A peer that vanished without a word is noticed within seconds, not hours.
            "tcp_user_timeout": 3000,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 2,
            "application_name": role.value,
            **given,
            "options": f"{given.get('options', '')} {options}".strip(),
        },
    )


class PoolStats(NamedTuple):
    """How a pool is used at this moment."""

    size: int
    """How many connections it has or is opening."""
    idle: int
    """How many of them nobody uses."""
    waiting: int
    """How many callers wait for one."""


class Pool:
    """A few connections of one role, opened after the fork and used in this process only.

    ``open`` it in the event loop that uses it, or enter it with ``async with``. Every connection
    commits each statement by itself.
    """

    def __init__(self, url: str, role: Role, *, size_max: int) -> None:
        self._process_id: int | None = None
        self._size_max = size_max
        self._conninfo = conninfo(url, role)
        self._pool = AsyncConnectionPool(
            self._conninfo,
            kwargs={"autocommit": True},
            min_size=1,
            max_size=size_max,
            timeout=POOL_SECONDS_MAX,
            max_waiting=64,
            reconnect_timeout=5,
            open=False,
            name=role.value,
        )

    async def open(self) -> None:
        """Open it without waiting for Postgres, which may be away: it is asked until it comes."""
        self._process_id = os.getpid()
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close every connection; those in use when they are given back."""
        await self._pool.close()

    def stats(self) -> PoolStats:
        """How it is used now; asks nobody."""
        measured = self._pool.get_stats()
        return PoolStats(
            measured["pool_size"], measured["pool_available"], measured["requests_waiting"]
        )

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for the time of the block.

        Raises ``DatabaseUnavailable``, ``Overloaded`` or ``BrokenRule`` for what Postgres raises
        in the block, and ``WrongProcess`` where the pool was not opened.
        """
        self._check_process()
        try:
            async with self._pool.connection() as connection:
                yield connection
        except psycopg.Error as error:
            raise translated(error) from error

    async def ask(
        self,
        question: Callable[Concatenate[Connection, Arguments], Awaitable[Answer]],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Answer:
        """What ``question`` answers to a connection and ``arguments``; raises as ``connection``.

        After a restart of Postgres every connection that lies here is closed, and each is found
        out by whoever takes it. So ``question`` is asked again while that is what went wrong: it
        must be safe to repeat, also when its first answer was lost on the way.
        """
        for tries_left in range(self._size_max, -1, -1):
            connection = None
            try:
                async with self.connection() as connection:
                    return await question(connection, *arguments, **options)
            except DatabaseUnavailable:
                # To wait again for a connection, or for a slow statement, would keep the caller
                # longer than it may wait.
                if connection is None or not connection.closed or not tries_left:
                    raise
        raise AssertionError

    @asynccontextmanager
    async def connection_besides(self) -> AsyncIterator[Connection]:
        """Another connection besides these, for the time of the block: opened for it, and closed.

        Raises what ``connection`` does.
        """
        self._check_process()
        try:
            opening = psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
            async with await opening as connection:
                yield connection
        except psycopg.Error as error:
            raise translated(error) from error

    def _check_process(self) -> None:
        if os.getpid() != self._process_id:
            raise WrongProcess


_DATA_EXCEPTION = "22000"
"""The SQLSTATE of a value that psycopg itself would not send, such as a text with NUL."""

_VALUE_CLASSES = frozenset({"22", "23", "54"})
"""SQLSTATE classes that blame the values: data exception, integrity, program limit.

Every other class blames the server, its state or its schema, and somebody can mend that: a
server that turned read-only, or was not migrated, must not turn rewards away for good.
"""


def translated(error: psycopg.Error) -> LedgerError:
    """Our error for one of psycopg's, by SQLSTATE and constraint name, never by its text."""
    if isinstance(error, TooManyRequests):
        return Overloaded()
    sqlstate = error.sqlstate
    if sqlstate is None and isinstance(error, psycopg.DataError):
        sqlstate = _DATA_EXCEPTION
    if sqlstate is None or sqlstate[:2] not in _VALUE_CLASSES:
        return DatabaseUnavailable()
    return BrokenRule(error.diag.constraint_name or sqlstate)


def array(values: Iterable[object]) -> str:
    """``values`` as the text of a Postgres array.

    They are strings, bytes, ``None``, or what ``str`` writes without quotes (numbers, times).

    psycopg can adapt lists too, at ten times the price: its Python code looks at every element,
    which for a reward's twenty columns costs more than everything else in the door.
    """
    return "{" + ",".join([_element(value) for value in values]) + "}"


def _element(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    return f'"{value}"'
