"""A probe learns whether the process lives, and whether a reward could be taken now."""

import asyncio
from collections.abc import Awaitable, Callable

import psycopg
import pytest
from falcon import testing
from falcon.asgi import App

from ingress.health import Live, Ready, can_post
from ledger.database import Pool, Role
from ledger.errors import DatabaseUnavailable
from tests.conftest import OWNER, SUPERUSER, Database, Run


async def yes() -> bool:
    return True


async def no() -> bool:
    return False


async def away() -> bool:
    raise DatabaseUnavailable


def answer(resource: object) -> testing.Result:
    app = App()
    app.add_route("/", resource)
    return testing.TestClient(app).simulate_get("/")


def ready(can_post: Callable[[], Awaitable[bool]], *, can_spool: bool) -> tuple[int, object]:
    result = answer(Ready(can_post, lambda: can_spool))
    return result.status_code, result.json


def test_a_process_that_answers_lives() -> None:
    result = answer(Live())
    assert (result.status_code, result.json) == (200, {"status": "ok"})


def test_what_a_probe_is_told_is_never_kept_by_a_cache() -> None:
    assert answer(Live()).headers["cache-control"] == "no-store"
    assert answer(Ready(away)).headers["cache-control"] == "no-store"


@pytest.mark.parametrize("post", [yes, no, away])
@pytest.mark.parametrize("can_spool", [True, False])
def test_a_reward_can_be_taken_when_it_can_be_posted_or_spooled(
    post: Callable[[], Awaitable[bool]], can_spool: bool
) -> None:
    if post is yes or can_spool:
        assert ready(post, can_spool=can_spool) == (200, {"status": "ok"})
    else:
        assert ready(post, can_spool=can_spool) == (503, {"status": "unavailable"})


def test_without_a_spool_only_postgres_counts() -> None:
    assert answer(Ready(away)).status_code == 503


def test_a_postgres_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> bool:
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr("ingress.health.CHECK_SECONDS_MAX", 0.05)
    assert ready(never, can_spool=False) == (503, {"status": "unavailable"})


def test_all_who_ask_at_once_share_one_check_and_none_takes_it_from_the_others(run: Run) -> None:
    asked = 0
    go = asyncio.Event()

    async def slow() -> bool:
        nonlocal asked
        asked += 1
        await go.wait()
        return True

    async def probes() -> list[int]:
        app = App()
        app.add_route("/", Ready(slow))
        async with testing.ASGIConductor(app) as client:
            waiting = [asyncio.create_task(client.simulate_get("/")) for _ in range(10)]
            await asyncio.sleep(0.05)
            waiting[0].cancel()
            await asyncio.sleep(0)
            go.set()
            return [(await task).status_code for task in waiting[1:]]

    assert run(probes()) == [200] * 9
    assert asked == 1


def can_be_posted(url: str, run: Run) -> bool:
    async def ask() -> bool:
        async with Pool(url, Role.WRITER, size_max=1) as pool:
            return await can_post(pool)

    answered: bool = run(ask())
    return answered


def test_a_migrated_database_takes_rewards(database: Database, run: Run) -> None:
    assert can_be_posted(database.url(), run)


def test_a_database_that_can_only_be_read_takes_none(database: Database, run: Run) -> None:
    database.rows(
        f"ALTER DATABASE {database.name} SET default_transaction_read_only = on", SUPERUSER
    )
    assert not can_be_posted(database.url(), run)


def test_a_database_that_nobody_migrated_takes_none(database: Database, run: Run) -> None:
    name = f"{database.name}_empty"
    database.rows(f"CREATE DATABASE {name} OWNER {OWNER}", SUPERUSER)
    try:
        assert not can_be_posted(database.postgres.url(OWNER, name), run)
    finally:
        with psycopg.connect(database.url(SUPERUSER), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_server_that_is_not_there_is_told_as_our_error(run: Run) -> None:
    with pytest.raises(DatabaseUnavailable):
        can_be_posted("postgresql://nobody@127.0.0.1:1/nothing", run)
