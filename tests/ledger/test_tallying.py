"""Rows of what workers counted: each worker has one of its own, and none is ever lost."""

import asyncio
from uuid import UUID, uuid4

import psycopg
import pytest

from ledger.database import Connection, Role
from ledger.tallying import STALE_MINUTES, Tally, take_row, total, write
from tests.conftest import OWNER, Database, Run

WRITER, READER = "ledger_writer", "ledger_reader"
COUNTED = Tally(
    believed=9,
    credited=3,
    recorded=1,
    conflicts=2,
    in_flight=3,
    kept=2,
    drained_credited=5,
    drained_recorded=6,
    drained_replayed=7,
    drained_ignored=8,
    drained_kept=9,
)


def rows(database: Database) -> int:
    return int(database.rows("SELECT count(*) FROM tallies")[0][0])


def grow_old(database: Database, worker: UUID) -> None:
    """As if its worker had not written for as long as one does that was killed."""
    database.rows(
        f"UPDATE tallies SET written_at = now() - interval '{STALE_MINUTES + 1} minutes'"
        f" WHERE worker = '{worker}'"
    )


async def begun(connection: Connection, tally: Tally = COUNTED) -> UUID:
    """A worker that has counted ``tally``."""
    worker = uuid4()
    await take_row(connection, worker)
    assert await write(connection, worker, tally)
    return worker


def test_what_is_written_twice_is_counted_once(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            assert await total(connection) == Tally()
            worker = uuid4()
            assert await take_row(connection, worker) == Tally()
            for _ in range(2):
                assert await write(connection, worker, COUNTED)
            assert await total(connection) == COUNTED

    run(main())


def test_the_row_of_a_worker_that_is_there_stays_its_own(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            first, second = await begun(connection), await begun(connection)
            assert await write(connection, first, COUNTED._replace(replayed=1, believed=10))
            assert await write(connection, second, COUNTED)
            assert (await total(connection)).believed == 19

    run(main())
    assert rows(database) == 2


def test_however_often_workers_start_and_end_there_is_one_row(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            for number in range(20):
                worker = uuid4()
                before = await take_row(connection, worker)
                assert before.credited == number
                sums = before.plus(Tally(believed=1, credited=1))
                assert await write(connection, worker, sums, has_ended=True)
            assert await total(connection) == Tally(believed=20, credited=20)

    run(main())
    assert rows(database) == 1


def test_what_a_killed_worker_had_under_way_was_never_answered(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            killed = await begun(connection)
            grow_old(database, killed)
            before = await take_row(connection, uuid4())
            assert before == COUNTED._replace(in_flight=0, abandoned=3)
            assert await total(connection) == before
            # It was not dead, only late: what it writes now must not replace what stands there.
            assert not await write(connection, killed, COUNTED)
            assert await total(connection) == before

    run(main())
    assert rows(database) == 1


def test_nothing_is_written_after_the_end(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            worker = await begun(connection)
            assert await write(connection, worker, COUNTED, has_ended=True)
            assert not await write(connection, worker, Tally())
            assert await total(connection) == COUNTED

    run(main())


def test_a_row_can_be_taken_again_when_the_answer_was_lost(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            worker = uuid4()
            for _ in range(3):
                assert await take_row(connection, worker) == Tally()

    run(main())
    assert rows(database) == 1


def test_of_many_who_take_a_row_at_once_each_has_its_own(database: Database, run: Run) -> None:
    async def begin() -> None:
        async with database.connected() as connection:
            worker = uuid4()
            before = await take_row(connection, worker)
            await asyncio.sleep(0.05)
            assert await write(connection, worker, before.plus(Tally(believed=1, ignored=1)))

    async def main() -> None:
        async with database.connected() as connection:
            tally = Tally(believed=10, ignored=10)
            for worker in [await begun(connection, tally) for _ in range(3)]:
                assert await write(connection, worker, tally, has_ended=True)
            before = await total(connection)
            await asyncio.gather(*(begin() for _ in range(12)))
            after = await total(connection)
            assert after == before.plus(Tally(believed=12, ignored=12))

    run(main())
    assert rows(database) == 12


def test_whoever_is_just_taking_a_row_holds_up_nobody(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected() as one, database.connected() as other:
            tally = Tally(believed=1, ignored=1)
            for worker in [await begun(one, tally) for _ in range(2)]:
                assert await write(one, worker, tally, has_ended=True)
            await one.execute("BEGIN")
            assert await take_row(one, uuid4()) == tally
            assert await take_row(other, uuid4()) == tally
            assert await take_row(other, uuid4()) == Tally()
            await one.execute("COMMIT")

    run(main())
    assert rows(database) == 3


# What the database itself refuses


def refused(database: Database, role: str, statement: str) -> tuple[str | None, str | None]:
    with (
        psycopg.connect(database.url(role), autocommit=True) as connection,
        pytest.raises(psycopg.Error) as caught,
    ):
        connection.execute(statement)  # type: ignore[call-overload]
    return caught.value.sqlstate, caught.value.diag.constraint_name


@pytest.mark.parametrize("statement", ["DELETE FROM tallies", "TRUNCATE tallies"])
def test_what_was_counted_stays(database: Database, statement: str) -> None:
    assert refused(database, OWNER, statement) == ("23001", "books_are_append_only")
    for role in (WRITER, READER):
        assert refused(database, role, statement)[0] == "42501"


def test_the_reader_writes_no_tally(database: Database) -> None:
    for statement in (
        "INSERT INTO tallies (worker) VALUES (gen_random_uuid())",
        "UPDATE tallies SET believed = 1",
    ):
        assert refused(database, READER, statement)[0] == "42501"


def test_no_service_has_a_right_to_the_tallies_that_is_not_listed_here(database: Database) -> None:
    rights = database.rows("""
        SELECT granted.grantee::regrole::text, granted.privilege_type
        FROM pg_class CROSS JOIN LATERAL aclexplode(relacl) AS granted
        WHERE oid = 'tallies'::regclass AND granted.grantee <> relowner
    """)
    assert sorted(rights) == [
        (READER, "SELECT"),
        *((WRITER, right) for right in ("INSERT", "SELECT", "UPDATE")),
    ]


@pytest.mark.parametrize("count", Tally._fields)
def test_no_count_is_negative(database: Database, count: str) -> None:
    statement = f"INSERT INTO tallies (worker, {count}) VALUES (gen_random_uuid(), -1)"
    assert refused(database, WRITER, statement) == ("23514", "tally_holds_no_negative_count")


def test_a_worker_has_one_row(database: Database) -> None:
    statement = f"INSERT INTO tallies (worker) VALUES ('{uuid4()}')"
    database.rows(statement, WRITER)
    assert refused(database, WRITER, statement) == ("23505", "tally_is_of_one_worker")


def test_the_tallies_have_a_column_for_each_count_and_say_what_they_are_for(
    database: Database,
) -> None:
    columns = database.rows(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'tallies'::regclass AND attnum > 0"
    )
    assert {name for (name,) in columns} == {
        *Tally._fields, "worker", "has_ended", "written_at", "seal",
    }  # fmt: skip
    described = database.rows("""
        SELECT obj_description('tallies'::regclass),
               obj_description('rewards_of_a_transaction'::regclass),
               obj_description('quarantine_open'::regclass)
    """)
    table, *indexes = described[0]
    assert table
    assert all(comment.endswith("?") for comment in indexes)


@pytest.mark.parametrize("role", [Role.READER, Role.WRITER])
def test_both_services_may_read_what_was_counted(database: Database, run: Run, role: Role) -> None:
    async def main() -> None:
        async with database.connected(role) as connection:
            assert await total(connection) == Tally()

    run(main())
