"""``ledger verify``, in parts: side by side, taken up again, or only what came since.

All parts look at one snapshot, each worker over a connection of its own. What one run has done can
be kept. A run that was cut off is taken up in a new snapshot: the parts that are left, what was
committed since it began, and, because they are quick, the parts that cannot be divided. A run
after one that found nothing looks at what was committed since, at every account of the users whom
that touched, and at the small tables; it does not see a change of another row from before, unless
a row is missing or one too many.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec
import psycopg

from ledger.database import Connection
from ledger.operations.finding import Finding
from ledger.operations.verified import UnusableState, Verified
from ledger.operations.verify import SNAPSHOT, look_at_periods, look_at_rules
from ledger.operations.verify_accounts import Users, look_at_houses, look_at_users
from ledger.operations.verify_commits import (
    Brought,
    End,
    count,
    get_end,
    is_there,
    list_users_since,
    look_at_commits,
    look_at_counts,
)
from ledger.tallying import Tally, total

STRETCH_REWARDS = 50_000
"""About how many rewards one part looks at: some seconds, and some tens of megabytes."""
SLICE_REWARDS = 3_000_000
"""Each slice reads all postings and balances, and sorts its own."""
USERS_MAX = 10_000
KEPT_SECONDS = 1.0

ReadAgain = Callable[[str, int, int], Awaitable[list[Finding]]]
"""Reads the documents of a stretch again, in the snapshot of this name; what is otherwise now."""


class Outcome(NamedTuple):
    """What a run found, and what it looked at."""

    findings: list[Finding]
    tally: Tally
    verified: Verified | None
    """How far the books are verified now; ``None`` where something was found."""
    since: int
    """After which position it looked at commits; 0: at all."""
    end: End


class _Part(NamedTuple):
    """What one worker does at a time."""

    name: str
    look: Callable[[Connection], Awaitable[list[Finding]]]
    is_kept: bool = False
    """Whether a run that takes this one up again need not do it again."""


async def verify_in_parts(
    conninfo: str,
    *,
    workers: int,
    before: Verified | None = None,
    read_again: ReadAgain | None = None,
    keep: Callable[[Verified], None] = lambda _: None,
    report: Callable[[int, int], None] = lambda _, __: None,
) -> Outcome:
    """Verify the books of ``conninfo``, going on from ``before``; never writes to them.

    ``keep`` is told now and then how far a whole run has come, and ``report`` how many parts of how
    many are done. Raises ``UnusableState`` when ``before`` is of other books.
    """
    async with _snapshot(conninfo) as (connection, name):
        end = await get_end(connection)
        if before is None:
            before = await _beginning(connection, end, reads_again=read_again is not None)
        elif not await is_there(connection, before.end):
            raise UnusableState(
                "is of other books, or a commit changed that it ends with: "
                "give another name, or say --whole"
            )
        elif before.reads_again != (read_again is not None):
            raise UnusableState(
                "was kept otherwise: say --documents or not as before, or say --whole"
            )
        run = _Run(before, end, keep, report)
        parts = deque(run.parts(await list_users_since(connection, before.end.position)))
        if read_again is not None:
            parts.extend(run.documents(name, read_again))
        await run.do(conninfo, name, parts, workers)
        run.findings += await look_at_counts(connection, run.brought)
        return Outcome(
            run.findings,
            await total(connection),
            run.verified(),
            before.end.position if before.is_whole else 0,
            end,
        )


@asynccontextmanager
async def _snapshot(conninfo: str) -> AsyncIterator[tuple[Connection, str]]:
    """A connection that only waits, for others to read what it sees; and the snapshot's name."""
    async with (
        await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection,
        connection.transaction(),
    ):
        await connection.execute(SNAPSHOT)
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        row = await (await connection.execute("SELECT pg_export_snapshot()")).fetchone()
        if row is None:
            raise AssertionError
        yield connection, row[0]


@asynccontextmanager
async def reading_snapshot(conninfo: str, name: str) -> AsyncIterator[Connection]:
    """A connection that reads the snapshot ``name``, on one core and in bounded memory."""
    async with (
        await psycopg.AsyncConnection.connect(
            conninfo, autocommit=True, prepare_threshold=None
        ) as connection,
        connection.transaction(),
    ):
        await connection.execute(SNAPSHOT)
        await connection.execute(f"SET TRANSACTION SNAPSHOT '{name}'")
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        # Nobody waits for this run: it may wait for whoever changes a table.
        await connection.execute("SET LOCAL lock_timeout = 0")
        # There is a worker for each core already.
        await connection.execute("SET LOCAL max_parallel_workers_per_gather = 0")
        await connection.execute("SET LOCAL work_mem = '64MB'")
        yield connection


async def _beginning(connection: Connection, end: End, *, reads_again: bool) -> Verified:
    """Nothing is done yet of books that end at ``end``."""
    rewards = (await count(connection)).rewards
    parts = max(1, -(-rewards // STRETCH_REWARDS))
    slices = 1 << max(0, (rewards // SLICE_REWARDS).bit_length())
    return Verified(
        end=end,
        brought=Brought(0, 0),
        stretch=max(1, -(-end.position // parts)),
        slices=slices,
        reads_again=reads_again,
    )


class _Run:
    """One run: which parts there are, and what they have come to."""

    def __init__(
        self,
        before: Verified,
        end: End,
        keep: Callable[[Verified], None],
        report: Callable[[int, int], None],
    ) -> None:
        self._before = before
        self._end = end
        self._keep = keep
        self._report = report
        self._kept_at = time.monotonic()
        # What is kept is what was there when the run began first; the rest is done again.
        self._kept = before
        self.brought = before.brought
        self.findings = list(before.findings)

    def verified(self) -> Verified | None:
        """How far the books are verified when all parts are done."""
        if self.findings:
            return None
        return msgspec.structs.replace(
            self._before,
            end=self._end,
            brought=self.brought,
            is_whole=True,
            done=frozenset(),
        )

    def parts(self, users: list[str]) -> Iterator[_Part]:
        """Everything that is to be done; the parts that cannot be divided first.

        ``users`` are those of whom something was committed since.
        """
        since = self._before.end.position if self._before.is_whole else 0
        yield _Part("house accounts", look_at_houses)
        yield _Part("periods", lambda connection: look_at_periods(connection, since))
        yield _Part("small tables", look_at_rules)
        for first, last, is_kept in self._stretches():
            name = f"commits {first}"
            if name not in self._before.done:
                yield _Part(name, self._stretch(first, last, is_kept), is_kept)
        if not self._before.is_whole:
            for number in range(self._before.slices):
                name = f"users {number}"
                if name not in self._before.done:
                    chosen = Users(number, self._before.slices)
                    yield _Part(name, self._users(chosen), is_kept=True)
        for start in range(0, len(users), USERS_MAX):
            chosen = Users(names=users[start : start + USERS_MAX])
            yield _Part(f"users since {start}", self._users(chosen))

    def documents(self, name: str, read_again: ReadAgain) -> Iterator[_Part]:
        """The documents of the same commits, in the snapshot ``name``."""
        for first, last, is_kept in self._stretches():
            part = f"documents {first}"
            if part not in self._before.done:

                async def look(
                    _: Connection, first: int = first, last: int = last
                ) -> list[Finding]:
                    return await read_again(name, first, last)

                yield _Part(part, look, is_kept)

    def _stretches(self) -> Iterator[tuple[int, int, bool]]:
        """First and last positions, and whether they are among those that a file can keep."""
        begun, step = self._before.end.position, self._before.stretch
        if not self._before.is_whole:
            for first in range(1, begun + 1, step):
                yield first, min(first + step - 1, begun), True
        for first in range(begun + 1, self._end.position + 1, step):
            yield first, min(first + step - 1, self._end.position), False

    def _stretch(
        self, first: int, last: int, is_kept: bool
    ) -> Callable[[Connection], Awaitable[list[Finding]]]:
        async def look(connection: Connection) -> list[Finding]:
            brought, findings = await look_at_commits(connection, first, last)
            self.brought = self.brought.plus(brought)
            if is_kept:
                self._kept = msgspec.structs.replace(
                    self._kept, brought=self._kept.brought.plus(brought)
                )
            return findings

        return look

    def _users(self, users: Users) -> Callable[[Connection], Awaitable[list[Finding]]]:
        return lambda connection: look_at_users(connection, users)

    async def do(self, conninfo: str, name: str, parts: deque[_Part], workers: int) -> None:
        """All ``parts``, by as many workers, each in the snapshot ``name``."""
        of = len(parts)
        if not self._before.is_whole:
            # What cannot be kept is known before anything was done in vain.
            self._keep(self._kept)

        async def work() -> None:
            async with reading_snapshot(conninfo, name) as connection:
                while parts:
                    part = parts.popleft()
                    self._note(part, await part.look(connection))
                    self._report(of - len(parts), of)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(workers, of)):
                    group.create_task(work())
        except* psycopg.Error as errors:
            raise errors.exceptions[0] from None
        finally:
            if not self._before.is_whole:
                self._keep(self._kept)

    def _note(self, part: _Part, findings: list[Finding]) -> None:
        self.findings += findings
        if part.is_kept:
            self._kept = msgspec.structs.replace(
                self._kept,
                done=self._kept.done | {part.name},
                findings=(*self._kept.findings, *findings),
            )
            if time.monotonic() - self._kept_at > KEPT_SECONDS:
                self._kept_at = time.monotonic()
                self._keep(self._kept)
