"""What the ingress is compared with: the same app before other books."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import psycopg_pool
from falcon.asgi import App, Request, Response

from ingress.app import POSTING_POOL_SIZE_MAX, create_app
from ingress.config import read_settings
from ledger.database import Pool, Role, conninfo
from ledger.quarantine import Unposted
from ledger.reward import Reward
from ledger.writing import Outcome, Receipt, Status, Writer, post

CONNECTIONS = 8


class NoBooks:
    """Answers at once, without a database: what is left is the door."""

    def post(self, reward: Reward) -> "asyncio.Future[Outcome]":
        """A receipt that is true of nothing."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        now = datetime.now(UTC)
        future.set_result(
            Receipt(Status.CREDITED, reward.reward_id, reward.user_id, reward.currency, 1, now)
        )
        return future


class NoQuarantine:
    """Keeps nothing: every delivery of the bench can be posted."""

    async def keep(self, delivery: Unposted) -> None:
        """Never called."""
        raise NotImplementedError


class OneByOne:
    """Posts each reward in a database transaction of its own, several at once."""

    def __init__(self, url: str) -> None:
        self._pool = psycopg_pool.AsyncConnectionPool(
            conninfo(url, Role.WRITER),
            kwargs={"autocommit": True},
            min_size=CONNECTIONS,
            max_size=CONNECTIONS,
            open=False,
        )
        self._under_way: set[asyncio.Future[Outcome]] = set()

    def post(self, reward: Reward) -> "asyncio.Future[Outcome]":
        """The outcome of this reward alone."""
        posting = asyncio.ensure_future(self._post(reward))
        self._under_way.add(posting)
        posting.add_done_callback(self._under_way.discard)
        return posting

    async def _post(self, reward: Reward) -> Outcome:
        async with self._pool.connection() as connection:
            return (await post(connection, [reward]))[0]

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """Falcon's hook for the start of a worker."""
        await self._pool.open()

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """Falcon's hook for its end."""
        await asyncio.gather(*self._under_way)
        await self._pool.close()


class Alone:
    """The writer's pool, open while a worker lives."""

    def __init__(self, pool: Pool, writer: Writer) -> None:
        self._pool = pool
        self._writer = writer

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """Falcon's hook for the start of a worker."""
        await self._pool.open()

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """Falcon's hook for its end."""
        await self._writer.drain()
        await self._pool.close()


def door_alone() -> App[Request, Response]:
    """The ingress without books."""
    return create_app(read_settings(), NoBooks(), NoQuarantine())


def one_by_one() -> App[Request, Response]:
    """The ingress before books that do not batch."""
    settings = read_settings()
    books = OneByOne(settings.database_url)
    app = create_app(settings, books, NoQuarantine())
    app.add_middleware(books)
    return app


def books_alone() -> App[Request, Response]:
    """The ingress and its books: no quarantine, nothing counted, nothing told."""
    settings = read_settings()
    pool = Pool(settings.database_url, Role.WRITER, size_max=POSTING_POOL_SIZE_MAX)
    writer = Writer(pool)
    app = create_app(settings, writer, NoQuarantine())
    app.add_middleware(Alone(pool, writer))
    return app
