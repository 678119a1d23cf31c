"""What both clients watch: it goes on by itself, whatever cuts it, without a gap or a repeat."""

import asyncio
import gc
import itertools
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import grpc.aio
import pytest

from ledger.client import (
    AsyncLedgerClient,
    InvalidArgument,
    LedgerClient,
    PermissionDenied,
    ServiceFault,
    questions,
    watching,
)
from ledger.errors import FellBehind
from ledger.problems import problem_of
from ledger.v1 import ledger_pb2 as pb
from tests.conftest import Database, Run
from tests.ledger.test_server import process
from tests.rewards import reward
from tests.serving import connected, free_port, serving
from tests.watches import SECONDS_MAX, posted

KINDS = pytest.mark.parametrize("kind", [LedgerClient, AsyncLedgerClient])


class Watching:
    """A watch of either client, of which one asks and waits in a thread."""

    def __init__(self, watch: Any) -> None:
        self.watch = watch
        self.names: list[str] = []

    async def next(self) -> str | None:
        """The name of the next reward; ``None`` if there is none."""
        async with asyncio.timeout(SECONDS_MAX):
            if isinstance(self.watch, watching.RewardWatch):
                told = await asyncio.to_thread(next, self.watch, None)
            else:
                told = await anext(self.watch, None)
        if told is None:
            return None
        self.names.append(told.reward_id)
        return told.reward_id

    async def until(self, count: int) -> list[str]:
        while len(self.names) < count:
            assert await self.next() is not None
        return self.names

    async def close(self) -> None:
        if isinstance(self.watch, watching.RewardWatch):
            self.watch.close()
        else:
            await self.watch.close()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def client(kind: type[Any], port: int) -> AsyncIterator[Callable[..., Watching]]:
    """Watches through a client of this kind, which is closed afterwards."""
    ledger = kind(f"127.0.0.1:{port}")
    try:
        yield lambda **asked: Watching(ledger.watch_rewards(**asked))
    finally:
        if kind is LedgerClient:
            ledger.close()
        else:
            await ledger.close()


@asynccontextmanager
async def watching_books(
    kind: type[Any], database: Database, **options: Any
) -> AsyncIterator[Callable[..., Watching]]:
    port = free_port()
    async with (
        serving(database.url("ledger_reader"), port=port, **options),
        client(kind, port) as watch,
    ):
        yield watch


# Where it begins, and its token


@KINDS
def test_what_is_watched_comes_one_by_one_from_where_it_is_asked_for(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        await posted(database, reward("a"), reward("b", currency="EUR"), reward("c"))
        async with watching_books(kind, database) as watch:
            all_ = watch(from_beginning=True)
            assert await all_.until(3) == ["a", "b", "c"]
            now = watch()
            waiting = asyncio.create_task(now.next())
            await until(lambda: now.watch.token is not None)
            await posted(database, reward("d"))
            assert await waiting == "d"
            euros = watch(from_beginning=True, currency="eur")
            assert await euros.until(1) == ["b"]
            for each in (all_, now, euros):
                await each.close()

    run(main())


@KINDS
def test_the_token_is_behind_a_reward_when_the_next_is_asked_for(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        await posted(database, reward("a"), reward("b"))
        async with watching_books(kind, database) as watch:
            first = watch(from_beginning=True)
            assert first.watch.token is None
            tokens = []
            for name in ("a", "b"):
                assert await first.next() == name
                tokens.append(first.watch.token)
            waiting = asyncio.create_task(first.next())
            await until(lambda: first.watch.token != tokens[1])
            tokens.append(first.watch.token)
            await posted(database, reward("c"))
            await waiting
            expected = [["a", "b", "c"], ["a", "b", "c"], ["c"]]
            for token, names in zip(tokens, expected, strict=True):
                again = watch(token=token)
                assert again.watch.token == token
                assert await again.until(len(names)) == names

    run(main())


@KINDS
def test_a_token_and_the_beginning_are_two_places(kind: type[Any]) -> None:
    with pytest.raises(ValueError, match="different places"):
        kind("127.0.0.1:1").watch_rewards(token="x", from_beginning=True)


# What cuts it


class Relay:
    """A port whose connections lead to another, until they are cut."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self._to = port
        self._ends: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        for end in self._ends:
            end.transport.abort()

    async def carry(self, here: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        there, forth = await asyncio.open_connection("127.0.0.1", self._to)
        ends = {back, forth}
        self._ends |= ends

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await reader.read(1 << 16):
                    writer.write(data)
                    await writer.drain()
            for end in ends:
                end.close()

        await asyncio.gather(pass_on(here, forth), pass_on(there, back))
        self._ends -= ends


@asynccontextmanager
async def relayed(port: int) -> AsyncIterator[Relay]:
    relay = Relay(port)
    server = await asyncio.start_server(relay.carry, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        relay.cut()


@KINDS
def test_a_connection_that_is_cut_again_and_again_makes_no_gap_and_no_repeat(
    database: Database, run: Run, kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.commits.STRETCH_SIZE_MAX", 7)

    async def main() -> None:
        names = [f"r-{number:02}" for number in range(53)]
        await posted(database, *(reward(name) for name in names[:50]))
        port = free_port()
        async with (
            serving(database.url("ledger_reader"), port=port),
            relayed(port) as relay,
            client(kind, relay.port) as watch,
        ):
            watched = watch(from_beginning=True)
            for count in (3, 20, 50):
                await watched.until(count)
                relay.cut()
            for name in names[50:]:
                await posted(database, reward(name))
                await watched.next()
                relay.cut()
            assert watched.names == names

    run(main())


@KINDS
def test_a_server_that_is_stopped_and_started_again_makes_no_gap_and_no_repeat(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        port = free_port()
        async with client(kind, port) as watch:
            watched = watch(from_beginning=True)
            with process(database, port) as server:
                async with connected(port):
                    await posted(database, reward("before"))
                    assert await watched.next() == "before"
                    waiting = asyncio.create_task(watched.next())
                    server.send_signal(signal.SIGTERM)
                    assert await asyncio.to_thread(server.wait, SECONDS_MAX) == 0
            await posted(database, reward("meanwhile"))
            with process(database, port):
                assert await waiting == "meanwhile"

    run(main())


class Scripted(grpc.GenericRpcHandler):
    """Plays the service: each call is answered by what is next in ``parts``."""

    def __init__(self, *parts: Callable[[Any], Any]) -> None:
        self.parts = list(parts)
        self.asked: list[pb.WatchRewardsRequest] = []
        self.asked_at: list[float] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_stream_rpc_method_handler(self.answer)

    async def answer(self, request: bytes, context: Any) -> None:
        self.asked.append(pb.WatchRewardsRequest.FromString(request))
        self.asked_at.append(time.monotonic())
        await self.parts.pop(0)(context)


@asynccontextmanager
async def scripted(
    kind: type[Any], *parts: Callable[[Any], Any]
) -> AsyncIterator[tuple[Scripted, Callable[..., Watching]]]:
    server = grpc.aio.server()
    handler = Scripted(*parts)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with client(kind, port) as watch:
            yield handler, watch
    finally:
        await server.stop(None)


def part(*names: str, token: str) -> bytes:
    rewards = [pb.Reward(reward_id=name) for name in names]
    return pb.WatchRewardsResponse(rewards=rewards, token=token).SerializeToString()


async def silent(context: Any) -> None:
    await context.write(part("silent", token="after-silent"))
    await asyncio.sleep(SECONDS_MAX)


async def ended(context: Any) -> None:
    await context.write(part("ended", token="after-ended"))


async def cancelled(context: Any) -> None:
    await context.abort(grpc.StatusCode.CANCELLED)


async def behind(context: Any) -> None:
    problem, details = problem_of(FellBehind(), "a-token")
    trailing = (("grpc-status-details-bin", details.SerializeToString()),)
    await context.abort(problem.status, problem.text, trailing)


async def away(context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE)


async def told(context: Any) -> None:
    await context.write(part("told", token="after-told"))
    await asyncio.sleep(SECONDS_MAX)


@KINDS
def test_whatever_ends_too_early_or_says_nothing_is_asked_again(
    run: Run, kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "SILENCE_SECONDS_MAX", 0.3)

    async def main() -> None:
        async with scripted(kind, silent, ended, cancelled, behind, told) as (server, watch):
            watched = watch(user_id="user-1", from_beginning=True)
            assert await watched.until(3) == ["silent", "ended", "told"]
            await watched.close()
        assert [asked.token for asked in server.asked] == [
            *("", "after-silent", *["after-ended"] * 3)
        ]
        assert server.asked[0].from_beginning
        assert {asked.user_id for asked in server.asked} == {"user-1"}

    run(main())


@KINDS
def test_whoever_takes_its_time_is_not_taken_for_a_silent_server(
    run: Run, kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "SILENCE_SECONDS_MAX", 0.5)

    async def slowly(context: Any) -> None:
        await context.write(part("first", "second", token="one"))
        await asyncio.sleep(1.2)
        await context.write(part("third", token="two"))
        await asyncio.sleep(SECONDS_MAX)

    async def main() -> None:
        async with scripted(kind, slowly) as (server, watch):
            watched = watch()
            await watched.next()
            await asyncio.sleep(1.3)
            assert await watched.until(3) == ["first", "second", "third"]
            assert len(server.asked) == 1
            await watched.close()

    run(main())


@KINDS
def test_it_is_asked_for_again_later_and_later_and_says_so(
    run: Run, kind: type[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PAUSE_SECONDS", 0.02)

    async def main() -> None:
        async with scripted(kind, *[away] * 4, told) as (server, watch):
            watched = watch()
            assert await watched.next() == "told"
            await watched.close()
        at = server.asked_at
        pauses = [after - before for before, after in itertools.pairwise(at)]
        for pause, least in zip(pauses, (0.02, 0.04, 0.08, 0.16), strict=True):
            assert pause >= least

    with caplog.at_level(logging.WARNING, "ledger.client"):
        run(main())
    assert len(caplog.records) == 3


def test_however_long_it_fails_the_pause_has_a_bound() -> None:
    question = questions.watch_rewards()
    course = watching.Course(question, lambda _question: None, asyncio.Event())
    error = watching._cut("away")
    assert all(course.pause_seconds(error) <= 20 for _ in range(3000))


@KINDS
def test_what_will_not_get_better_is_raised_at_once(
    database: Database, run: Run, kind: type[Any]
) -> None:
    def refused(status: grpc.StatusCode) -> Callable[[Any], Any]:
        return lambda context: context.abort(status)

    async def main() -> None:
        async with watching_books(kind, database) as watch:
            for asked, field in (({"token": ""}, "token"), ({"currency": "U S"}, "currency")):
                with pytest.raises(InvalidArgument) as caught:
                    await watch(**asked).next()
                assert caught.value.field == field
        denied, fault = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INTERNAL
        async with scripted(kind, refused(denied), refused(fault)) as (_, watch):
            for expected in (PermissionDenied, ServiceFault):
                watched = watch()
                with pytest.raises(expected):
                    await watched.next()
                assert await watched.next() is None

    run(main())


# Its end


@KINDS
@pytest.mark.parametrize("parts", [[told], [away] * 9])
def test_whoever_waits_is_let_go_when_it_is_closed(
    run: Run, kind: type[Any], parts: list[Callable[[Any], Any]]
) -> None:
    async def main() -> None:
        for closes_client in (False, True):
            async with scripted(kind, *parts) as (server, watch):
                watched = watch()
                if parts == [told]:
                    assert await watched.next() == "told"
                waiting = asyncio.create_task(watched.next())
                await until(lambda: len(server.asked) >= min(3, len(parts)))
                if not closes_client:
                    await watched.close()
                    async with asyncio.timeout(SECONDS_MAX):
                        assert await waiting is None
            async with asyncio.timeout(SECONDS_MAX):
                assert await waiting is None
                assert await watched.next() is None

    run(main())


@KINDS
def test_a_watch_that_nobody_has_any_more_is_ended(run: Run, kind: type[Any]) -> None:
    is_gone = asyncio.Event()

    async def until_gone(context: Any) -> None:
        try:
            await told(context)
        except asyncio.CancelledError:
            is_gone.set()
            raise

    async def main() -> None:
        async with scripted(kind, until_gone) as (_, watch):
            watched: Watching | None = watch()
            assert watched is not None
            assert await watched.next() == "told"
            gc.disable()
            watched = None
            try:
                await asyncio.wait_for(is_gone.wait(), SECONDS_MAX)
            finally:
                gc.enable()

    run(main())


def test_a_task_that_watches_can_be_cancelled(run: Run) -> None:
    async def main() -> None:
        async with scripted(AsyncLedgerClient, told) as (_, watch):
            watched = watch()
            await watched.next()
            task = asyncio.create_task(watched.next())
            await asyncio.sleep(0.05)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert task.cancelled()

    run(main())
