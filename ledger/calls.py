"""The service's calls: who asks is known before anything is read, and every error has its status.

One handler for all methods: grpc.aio waits anew on each registered method for every call.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import RequestInfo

from ledger.access import Access
from ledger.callers import Caller, Scope, calling
from ledger.errors import (
    DeadlineExceeded,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    Refused,
    Unavailable,
    where,
)
from ledger.observing import OK, Observation, Observer
from ledger.service import SERVICE, LedgerService, Part, problem_of
from ledger.v1 import ledger_pb2 as pb

MESSAGE_SECONDS_MAX = 5.0
"""How long a call's message may take to arrive."""
CALLS_MAX = 1000
"""How many calls of the service may run at once; health and reflection are not counted."""
STREAMS_MAX = 500
"""How many streams may be open at once, besides those calls."""

SCOPES = {
    "GetBalance": Scope.BALANCES,
    "ListBalances": Scope.BALANCES,
    "BatchGetBalances": Scope.BALANCES,
    "ListRewards": Scope.HISTORY,
    "GetReward": Scope.HISTORY,
    "ListCurrencyTotals": Scope.TOTALS,
    "WatchRewards": Scope.WATCH,
}
"""The scope that each method needs; a method that is not here cannot be served."""

log = logging.getLogger("ledger")

Method = Callable[[Message], Awaitable[Message]]
StreamMethod = Callable[[Message, Callable[[Exception], None]], AsyncGenerator[Part, None]]
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


class Calls(grpc.GenericRpcHandler):
    """Answers every method of ``service``, to those whom ``access`` knows and lets."""

    def __init__(
        self,
        service: LedgerService,
        access: Access,
        observer: Observer,
        *,
        message_seconds_max: float = MESSAGE_SECONDS_MAX,
        calls_max: int = CALLS_MAX,
        streams_max: int = STREAMS_MAX,
    ) -> None:
        self._access = access
        self._observer = observer
        self._message_seconds_max = message_seconds_max
        self._calls_max = calls_max
        self._streams_max = streams_max
        self._running = 0
        self._nothing_runs = asyncio.Event()
        self._nothing_runs.set()
        self._streams: set[_Stream] = set()
        self._handlers: dict[str, Handler] = {}
        for method in pb.DESCRIPTOR.services_by_name["LedgerService"].methods:
            add = self.add_stream if method.server_streaming else self.add
            add(
                f"/{SERVICE}/{method.name}",
                getattr(service, _snake_case(method.name)),
                getattr(pb, method.input_type.name),
                SCOPES[method.name],
            )

    @property
    def running(self) -> int:
        """How many calls are being answered now, without streams."""
        return self._running

    @property
    def streams(self) -> int:
        """How many streams are open now."""
        return len(self._streams)

    def add(self, path: str, method: Method, request_type: type[Message], scope: Scope) -> None:
        """Answer calls of ``path`` by ``method``, which takes a ``request_type``.

        A unary handler of grpc.aio waits for ever for a message that never comes. This one takes
        its one message from a stream instead; on the wire there is no difference.
        """

        async def answer(_requests: object, context: Context) -> bytes:
            seen = Observation(name)
            try:
                self._admit(context, scope, seen)
                self._begin(context)
                request = seen.request = request_type()
                request.ParseFromString(await self._message(context))
                reply = (await method(request)).SerializeToString()
                seen.status = OK
                return reply
            except Exception as error:
                await _refuse(error, context, seen)
            finally:
                self._observer.observe(seen, context)

        name = path.rpartition("/")[2]
        self._handlers[path] = grpc.stream_unary_rpc_method_handler(answer)

    def add_stream(
        self, path: str, method: StreamMethod, request_type: type[Message], scope: Scope
    ) -> None:
        """Answer calls of ``path`` with the stream that ``method`` makes of its one request.

        It ends when ``end_streams`` is called, when its caller may not have it any more, or when
        ``method`` calls what it was given for that. The status says with which token to go on.
        """

        async def answer(_requests: object, context: Context) -> None:
            seen = Observation(name)
            stream = _Stream(asyncio.current_task(), context, scope, seen)
            token = ""
            try:
                self._admit(context, scope, seen)
                if len(self._streams) >= self._streams_max:
                    raise Overloaded
                self._streams.add(stream)
                request = seen.request = request_type()
                request.ParseFromString(await self._message(context))
                async with aclosing(method(request, stream.end)) as parts:
                    async for part in parts:
                        token = part.token
                        await context.write(part.message)
                seen.status = OK
            except asyncio.CancelledError:
                if stream.ending is None:
                    raise
                # Also behind a message that is still on its way: the status comes after it.
                await _refuse(stream.ending, context, seen, token)
            except Exception as error:
                await _refuse(error, context, seen, token)
            finally:
                self._streams.discard(stream)
                self._observer.observe(seen, context)

        name = path.rpartition("/")[2]
        self._handlers[path] = grpc.stream_stream_rpc_method_handler(answer)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "Handler | None":
        """The handler of a call's method; ``None`` becomes UNIMPLEMENTED."""
        return self._handlers.get(handler_call_details.method)

    async def drain(self) -> None:
        """Returns when every running call has been answered and its answer was sent."""
        await self._nothing_runs.wait()

    def end_streams(self) -> None:
        """End every stream: its caller is asked to come back."""
        for stream in self._streams:
            stream.end(Unavailable())

    def check_streams(self) -> None:
        """End the streams of callers who are not who they were any more, or may not have them."""
        for stream in self._streams:
            try:
                caller = self._access.caller(stream.context)
                _check(caller, stream.scope)
            except Refused as error:
                stream.end(error)
            else:
                if caller != stream.seen.caller:
                    # Its other scopes are not those under which it began.
                    stream.end(Unavailable())

    def _admit(self, context: Context, scope: Scope, seen: Observation) -> None:
        caller = seen.caller = self._access.caller(context)
        _check(caller, scope)
        calling.set(caller)

    def _begin(self, context: Context) -> None:
        if self._running >= self._calls_max:
            raise Overloaded
        self._running += 1
        self._nothing_runs.clear()
        # The stub names a class that nobody can make.
        context.add_done_callback(self._end)  # type: ignore[arg-type]

    def _end(self, _context: Context) -> None:
        self._running -= 1
        if not self._running:
            self._nothing_runs.set()

    async def _message(self, context: Context) -> bytes:
        try:
            async with asyncio.timeout(self._message_seconds_max):
                message = await context.read()
        except TimeoutError:
            raise DeadlineExceeded from None
        # EOF, when the caller closed its side without a word, is not bytes.
        if not isinstance(message, bytes):
            raise DecodeError
        return message


class _Stream:
    """A stream that is open."""

    def __init__(
        self,
        task: "asyncio.Task[object] | None",
        context: Context,
        scope: Scope,
        seen: Observation,
    ) -> None:
        self._task = task
        self.context = context
        self.scope = scope
        self.seen = seen
        self.ending: Exception | None = None
        """What its caller is told, when it was we who ended it."""

    def end(self, error: Exception) -> None:
        """End it, once."""
        if self._task is not None and self.ending is None:
            self.ending = error
            self._task.cancel()


def _check(caller: Caller, scope: Scope) -> None:
    if scope not in caller.scopes:
        raise PermissionDenied(scope.value)


def _snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


async def _refuse(
    error: Exception, context: Context, seen: Observation, token: str = ""
) -> NoReturn:
    problem, status = problem_of(error, token)
    seen.status, seen.reason = problem.status.name, problem.reason
    if isinstance(error, InvalidArgument):
        seen.field = error.field
    if problem.status is grpc.StatusCode.INTERNAL:
        log.error("request %s: %s", seen.request_id, where(error))
    status.details.add().Pack(RequestInfo(request_id=seen.request_id))
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(problem.status, problem.text, details)
