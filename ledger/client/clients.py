"""The two clients: one asks and waits, the other asks and awaits; ``questions`` says what."""

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar
from weakref import WeakSet

import grpc
import grpc.aio

from ledger.client import finance, questions
from ledger.client.connection import TIMEOUT_SECONDS, Tls, Token, connection
from ledger.client.errors import error_of
from ledger.client.questions import Question, next_page
from ledger.client.values import Line, Reward, RewardPage, Watched
from ledger.client.watching import (
    AsyncHistoryWatch,
    AsyncRewardWatch,
    Course,
    HistoryWatch,
    Over,
    RewardWatch,
    What,
)
from ledger.v1.ledger_pb2_grpc import LedgerServiceStub

Answer = TypeVar("Answer")
Arguments = ParamSpec("Arguments")
Client = TypeVar("Client")
Result = TypeVar("Result")


def _method(
    describe: Callable[Arguments, Question[Answer]],
    ask: Callable[[Client, Question[Answer]], Result],
) -> Callable[Concatenate[Client, Arguments], Result]:
    """The method that takes what ``describe`` takes, and asks the question that it gives."""

    @functools.wraps(describe)
    def method(self: Client, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return ask(self, describe(*args, **kwargs))

    # Else help() would take the first argument for the client itself.
    shown = inspect.signature(describe)
    client = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = shown.replace(  # type: ignore[attr-defined]
        parameters=[client, *shown.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )
    return method


class _Client:
    """What both clients are made of, and how they reach the service."""

    _kind: ClassVar[Any]
    """Who makes the channels."""

    def __init__(
        self,
        address: str,
        *,
        tls: Tls | bool | None = None,
        token: Token | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """``address`` is ``host:port``, or what else gRPC takes for a name.

        TLS is used unless the address is of this machine, such as ``127.0.0.1:50051``; ``tls``
        says otherwise, and holds other certificates than the public authorities'. ``token`` is a
        bearer token, or gives it for each question; it goes over TLS only, or to this machine.
        Each question may take ``timeout_seconds``, if it does not say itself. Raises
        ``ValueError`` for what does not fit together.
        """
        self._connection = connection(
            address, tls=tls, token=token, timeout_seconds=timeout_seconds
        )
        self._opened: tuple[Any, Any] | None = None
        self._opening = threading.Lock()
        self._courses: WeakSet[Course[Any, Any]] = WeakSet()

    def _open(self) -> tuple[Any, Any]:
        """The channel, and the calls on it."""
        # Not before the first question: until then a process may fork, and a loop may start.
        with self._opening:
            if self._opened is None:
                channel = self._connection.channel(self._kind)
                self._opened = channel, LedgerServiceStub(channel)  # type: ignore[no-untyped-call]
        return self._opened

    def _call(self, question: Question[Any]) -> Any:
        _, calls = self._open()
        method = getattr(calls, question.method)
        return method(question.request, **self._connection.call(question.timeout_seconds))

    def _stream(self, question: Question[Any]) -> Any:
        _, calls = self._open()
        return getattr(calls, question.method)(question.request, **self._connection.stream())

    def _course(self, question: Question[Watched[What]], over: Over) -> Course[What, Over]:
        """The course of a watch, which ends with this client."""
        course = Course(question, self._stream, over)
        with self._opening:
            self._courses.add(course)
        return course

    def _end_courses(self) -> None:
        with self._opening:
            courses = tuple(self._courses)
        for course in courses:
            course.end()


class LedgerClient(_Client):
    """Asks the ledger service, and waits for the answer; any thread may ask.

    Raises ``ClientError``, see ``ledger.client.errors``. Close it, or use it in a ``with``.
    """

    _kind: ClassVar[Any] = grpc

    def _ask(self, question: Question[Answer]) -> Answer:
        try:
            reply = self._call(question)
        except grpc.RpcError as error:
            raise error_of(error) from error
        return question.read(reply)

    def _pages(self, question: Question[RewardPage]) -> Iterator[RewardPage]:
        asked: Question[RewardPage] | None = question
        while asked is not None:
            yield (page := self._ask(asked))
            asked = next_page(asked, page)

    def _rewards(self, question: Question[RewardPage]) -> Iterator[Reward]:
        for page in self._pages(question):
            yield from page.rewards

    def _lines(self, question: Question[RewardPage]) -> Iterator[Line]:
        for page in self._pages(question):
            yield from page.lines

    def _watch_rewards(self, question: Question[Watched[Reward]]) -> RewardWatch:
        return RewardWatch(self._course(question, threading.Event()))

    def _watch_history(self, question: Question[Watched[Line]]) -> HistoryWatch:
        return HistoryWatch(self._course(question, threading.Event()))

    get_balance = _method(questions.get_balance, _ask)
    list_balances = _method(questions.list_balances, _ask)
    batch_get_balances = _method(questions.batch_get_balances, _ask)
    list_rewards = _method(questions.list_rewards, _rewards)
    list_rewards_page = _method(questions.list_rewards, _ask)
    list_history = _method(questions.list_history, _lines)
    get_reward = _method(questions.get_reward, _ask)
    watch_rewards = _method(questions.watch_rewards, _watch_rewards)
    watch_history = _method(questions.watch_history, _watch_history)
    reverse_reward = _method(questions.reverse_reward, _ask)
    list_currency_totals = _method(questions.list_currency_totals, _ask)
    list_movements = _method(finance.list_movements, _ask)
    get_trial_balance = _method(finance.get_trial_balance, _ask)

    def close(self) -> None:
        """End the connection, and with it what is still asked or watched."""
        self._end_courses()
        channel, _ = self._open()
        channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class AsyncLedgerClient(_Client):
    """Asks the ledger service from one event loop, that of its first question.

    Raises ``ClientError``, see ``ledger.client.errors``. Close it, or use it in an ``async with``.
    """

    _kind: ClassVar[Any] = grpc.aio

    async def _ask(self, question: Question[Answer]) -> Answer:
        try:
            reply = await self._call(question)
        except grpc.RpcError as error:
            raise error_of(error) from error
        return question.read(reply)

    async def _pages(self, question: Question[RewardPage]) -> AsyncIterator[RewardPage]:
        asked: Question[RewardPage] | None = question
        while asked is not None:
            yield (page := await self._ask(asked))
            asked = next_page(asked, page)

    async def _rewards(self, question: Question[RewardPage]) -> AsyncIterator[Reward]:
        async for page in self._pages(question):
            for reward in page.rewards:
                yield reward

    async def _lines(self, question: Question[RewardPage]) -> AsyncIterator[Line]:
        async for page in self._pages(question):
            for line in page.lines:
                yield line

    def _watch_rewards(self, question: Question[Watched[Reward]]) -> AsyncRewardWatch:
        return AsyncRewardWatch(self._course(question, asyncio.Event()))

    def _watch_history(self, question: Question[Watched[Line]]) -> AsyncHistoryWatch:
        return AsyncHistoryWatch(self._course(question, asyncio.Event()))

    get_balance = _method(questions.get_balance, _ask)
    list_balances = _method(questions.list_balances, _ask)
    batch_get_balances = _method(questions.batch_get_balances, _ask)
    list_rewards = _method(questions.list_rewards, _rewards)
    list_rewards_page = _method(questions.list_rewards, _ask)
    list_history = _method(questions.list_history, _lines)
    get_reward = _method(questions.get_reward, _ask)
    watch_rewards = _method(questions.watch_rewards, _watch_rewards)
    watch_history = _method(questions.watch_history, _watch_history)
    reverse_reward = _method(questions.reverse_reward, _ask)
    list_currency_totals = _method(questions.list_currency_totals, _ask)
    list_movements = _method(finance.list_movements, _ask)
    get_trial_balance = _method(finance.get_trial_balance, _ask)

    async def close(self) -> None:
        """End the connection, and with it what is still asked or watched."""
        self._end_courses()
        channel, _ = self._open()
        await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()
