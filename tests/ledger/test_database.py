"""Connections, their settings and their process; Postgres's errors and ours."""

import asyncio
import os
from datetime import UTC, datetime
from decimal import Decimal

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from ledger.database import (
    Connection,
    Pool,
    PoolStats,
    Role,
    WrongProcess,
    array,
    conninfo,
    translated,
)
from ledger.errors import BrokenRule, DatabaseUnavailable, LedgerError, Overloaded
from tests.conftest import OWNER, SUPERUSER, Database, Run

SETTINGS = {
    "statement_timeout": "2s",
    "lock_timeout": "1s",
    "idle_in_transaction_session_timeout": "5s",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "TimeZone": "UTC",
}


@pytest.mark.parametrize(
    ("role", "special"),
    [
        (Role.WRITER, {"enable_nestloop": "off", "enable_seqscan": "off"}),
        (Role.READER, {"enable_bitmapscan": "off", "enable_seqscan": "off"}),
    ],
)
def test_a_connection_starts_as_its_role_and_with_its_settings(
    database: Database, role: Role, special: dict[str, str]
) -> None:
    with psycopg.connect(conninfo(database.url(OWNER), role)) as connection:
        assert connection.execute("SELECT current_user, session_user").fetchone() == (role, OWNER)
        shown = {
            name: connection.execute(f"SHOW {name}").fetchone()[0]  # type: ignore[call-overload,index]
            for name in SETTINGS | special
        }
        application = connection.execute("SHOW application_name").fetchone()
    assert shown == SETTINGS | special
    assert application == (role.value,)


@pytest.mark.parametrize("role", list(Role))
def test_a_command_plans_each_of_its_questions(database: Database, role: Role) -> None:
    info = conninfo(database.url(OWNER), role, is_service=False)
    with psycopg.connect(info) as connection:
        for name, value in (("plan_cache_mode", "auto"), ("enable_seqscan", "on")):
            assert connection.execute(f"SHOW {name}").fetchone() == (value,)  # type: ignore[call-overload]


def test_what_the_address_says_otherwise_does_not_lift_a_bound(database: Database) -> None:
    url = f"{database.url(OWNER)}&options=-c%20statement_timeout%3D0%20-c%20work_mem%3D5MB"
    with psycopg.connect(conninfo(url, Role.WRITER)) as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == ("2s",)
        assert connection.execute("SHOW work_mem").fetchone() == ("5MB",)


def test_the_time_of_a_statement_can_be_given(database: Database) -> None:
    info = conninfo(database.url(), Role.READER, statement_seconds_max=60)
    with psycopg.connect(info) as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == ("1min",)


def test_a_peer_that_does_not_answer_is_given_up() -> None:
    told = conninfo_to_dict(conninfo("postgresql://somewhere/ledger", Role.WRITER))
    assert told["connect_timeout"] == "2"
    assert told["tcp_user_timeout"] == "3000"
    assert (told["host"], told["dbname"]) == ("somewhere", "ledger")


def test_a_statement_that_hangs_is_given_up(database: Database, run: Run) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.READER, size_max=1) as pool:

            async def hang() -> None:
                async with pool.connection() as connection:
                    await connection.execute("SET statement_timeout = '50ms'")
                    await connection.execute("SELECT pg_sleep(60)")

            with pytest.raises(DatabaseUnavailable) as caught:
                await hang()
            assert isinstance(caught.value.__cause__, errors.QueryCanceled)
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")

    run(main())


def test_every_statement_of_a_pool_is_committed_by_itself(database: Database, run: Run) -> None:
    async def main() -> None:
        pool = Pool(database.url(), Role.WRITER, size_max=1)
        async with pool, pool.connection() as connection:
            assert connection.autocommit

    run(main())


def test_a_pool_hands_out_no_more_connections_than_it_may(database: Database, run: Run) -> None:
    async def main() -> None:
        seen: set[int] = set()

        async def work(pool: Pool) -> None:
            async with pool.connection() as connection:
                seen.add(connection.info.backend_pid)
                await connection.execute("SELECT pg_sleep(0.01)")

        async with Pool(database.url(), Role.READER, size_max=2) as pool:
            await asyncio.gather(*(work(pool) for _ in range(20)))
        assert 1 <= len(seen) <= 2

    run(main())


def test_a_question_passes_over_every_connection_that_a_restart_has_closed(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.READER, size_max=4) as pool:
            together = asyncio.Barrier(4)

            async def hold() -> None:
                async with pool.connection():
                    await together.wait()

            await asyncio.gather(*(hold() for _ in range(4)))
            assert pool.stats().idle == 4
            database.rows(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                f" WHERE datname = '{database.name}' AND application_name = 'ledger_reader'",
                SUPERUSER,
            )
            assert await pool.ask(backend) > 0

    run(main())


def test_a_question_that_is_slow_is_not_asked_again(database: Database, run: Run) -> None:
    asked = 0

    async def slow(connection: Connection) -> None:
        nonlocal asked
        asked += 1
        await connection.execute("SET statement_timeout = 50")
        await connection.execute("SELECT pg_sleep(5)")

    async def main() -> None:
        async with Pool(database.url(), Role.READER, size_max=2) as pool:
            with pytest.raises(DatabaseUnavailable):
                await pool.ask(slow)

    run(main())
    assert asked == 1


async def backend(connection: Connection) -> int:
    row = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
    assert row is not None
    return int(row[0])


def test_a_pool_says_how_it_is_used(database: Database, run: Run) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.READER, size_max=2) as pool:

            async def ask() -> None:
                async with pool.connection():
                    await asyncio.sleep(0.2)

            asking = [asyncio.create_task(ask()) for _ in range(5)]
            async with asyncio.timeout(10):
                while pool.stats() != PoolStats(size=2, idle=0, waiting=3):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await asyncio.gather(*asking)
            async with asyncio.timeout(10):
                while pool.stats() != PoolStats(size=2, idle=2, waiting=0):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    run(main())


def test_a_pool_where_too_many_wait_turns_the_next_away(database: Database, run: Run) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.READER, size_max=1) as pool, pool.connection():

            async def ask() -> None:
                async with pool.connection():
                    pass

            waiting = [asyncio.ensure_future(ask()) for _ in range(64)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await ask()
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    run(main())


def test_a_pool_that_waits_for_a_connection_in_vain_says_unavailable(run: Run) -> None:
    async def main() -> None:
        async with Pool("host=/nowhere", Role.READER, size_max=1) as pool:
            with pytest.raises(DatabaseUnavailable):
                async with pool.connection():
                    pass

    run(main())


def test_a_pool_is_refused_before_it_is_opened_and_after_it_is_closed(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        pool = Pool(database.url(), Role.READER, size_max=1)
        with pytest.raises(WrongProcess):
            async with pool.connection():
                pass
        async with pool:
            pass
        with pytest.raises(DatabaseUnavailable):
            async with pool.connection():
                pass

    run(main())


def test_a_pool_is_refused_in_a_process_that_did_not_open_it(database: Database, run: Run) -> None:
    def in_the_child(pool: Pool) -> int:
        """What the child ends with; it may not run the parent's loop."""
        try:
            pool.connection().__aenter__().send(None)  # type: ignore[attr-defined]
        except WrongProcess:
            return 42
        except BaseException:  # noqa: BLE001
            return 2
        return 1

    async def main() -> None:
        async with Pool(database.url(), Role.READER, size_max=1) as pool:
            async with pool.connection() as connection:
                before = connection.info.backend_pid
            child = os.fork()
            if child == 0:
                status = 3
                try:
                    status = in_the_child(pool)
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42  # noqa: ASYNC222
            async with pool.connection() as connection:
                assert connection.info.backend_pid == before
                cursor = await connection.execute("SELECT 7")
                assert await cursor.fetchone() == (7,)

    run(main())


class Violation(errors.CheckViolation):
    """A broken rule, named as Postgres names it."""

    @property
    def diag(self) -> psycopg.errors.Diagnostic:
        class Named(psycopg.errors.Diagnostic):
            constraint_name = "posting_amount_is_positive"

        return Named(None)


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (Violation(), BrokenRule("posting_amount_is_positive")),
        (errors.NotNullViolation(), BrokenRule("23502")),
        (errors.InvalidTextRepresentation(), BrokenRule("22P02")),
        (errors.UntranslatableCharacter(), BrokenRule("22P05")),
        (errors.NumericValueOutOfRange(), BrokenRule("22003")),
        (errors.ProgramLimitExceeded(), BrokenRule("54000")),
        (psycopg.DataError("a text with NUL"), BrokenRule("22000")),
        (errors.AdminShutdown(), DatabaseUnavailable()),
        (errors.CrashShutdown(), DatabaseUnavailable()),
        (errors.CannotConnectNow(), DatabaseUnavailable()),
        (errors.QueryCanceled(), DatabaseUnavailable()),
        (errors.LockNotAvailable(), DatabaseUnavailable()),
        (errors.DeadlockDetected(), DatabaseUnavailable()),
        (errors.SerializationFailure(), DatabaseUnavailable()),
        (errors.TooManyConnections(), DatabaseUnavailable()),
        (errors.DiskFull(), DatabaseUnavailable()),
        (errors.ConnectionFailure(), DatabaseUnavailable()),
        (errors.InternalError_(), DatabaseUnavailable()),
        (errors.IdleInTransactionSessionTimeout(), DatabaseUnavailable()),
        # Somebody can mend these, so no reward may be turned away for good because of them.
        (errors.ReadOnlySqlTransaction(), DatabaseUnavailable()),
        (errors.InsufficientPrivilege(), DatabaseUnavailable()),
        (errors.UndefinedTable(), DatabaseUnavailable()),
        (errors.InvalidPassword(), DatabaseUnavailable()),
        (errors.FeatureNotSupported(), DatabaseUnavailable()),
        (psycopg.OperationalError("the connection is lost"), DatabaseUnavailable()),
        (psycopg.InterfaceError("the connection is closed"), DatabaseUnavailable()),
        (PoolTimeout(), DatabaseUnavailable()),
        (PoolClosed(), DatabaseUnavailable()),
        (TooManyRequests(), Overloaded()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_postgres_becomes_ours(error: psycopg.Error, ours: LedgerError) -> None:
    became = translated(error)
    assert (type(became), became.args) == (type(ours), ours.args)


def test_a_broken_rule_is_named_by_its_constraint(database: Database, run: Run) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            with pytest.raises(BrokenRule) as caught:
                async with pool.connection() as connection:
                    await connection.execute(
                        "INSERT INTO balances VALUES ('user:u', 'NOPE', 0, 1, 1, now())"
                    )
            assert caught.value.rule == "balance_currency_is_registered"

    run(main())


def test_an_error_that_is_not_postgres_s_passes_as_it_is(database: Database, run: Run) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            with pytest.raises(ZeroDivisionError):
                async with pool.connection():
                    raise ZeroDivisionError

    run(main())


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
AWKWARD = st.sampled_from(
    [*"\"\\{}',\n\r\t %$é😀\u202e", "", "NULL", "null", "\\\\", '\\"', "{a,b}", " padded ", "\\x00"]
)
TIMES = st.datetimes(timezones=st.just(UTC))
AMOUNTS = st.decimals(allow_nan=False, allow_infinity=False, places=18, max_value=10**12)


@pytest.mark.parametrize(
    ("kind", "elements"),
    [
        ("text", TEXTS | AWKWARD),
        ("bytea", st.binary()),
        ("numeric", AMOUNTS | st.integers(0, 10**30 - 1).map(Decimal)),
        ("timestamptz", TIMES | st.just(datetime(9999, 12, 31, tzinfo=UTC))),
    ],
)
def test_every_value_comes_back_from_an_array_as_it_went(
    database: Database, kind: str, elements: st.SearchStrategy[object]
) -> None:
    with psycopg.connect(conninfo(database.url(), Role.READER), autocommit=True) as connection:

        @settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=200)
        @given(st.lists(st.none() | elements))
        def check(values: list[object]) -> None:
            row = connection.execute(
                f"SELECT %(values)s::{kind}[]",  # type: ignore[arg-type]
                {"values": array(values)},
            ).fetchone()
            assert row == (values,)

        check()
