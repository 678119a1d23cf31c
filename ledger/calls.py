"""The service's calls: who asks is known before anything is read, and every error has its status.

One handler for all methods: grpc.aio waits anew on each registered method for every call.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import NamedTuple, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import RequestInfo
from google.rpc.status_pb2 import Status as RpcStatus

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
from ledger.problems import Problem, problem_of
from ledger.service import SERVICE, LedgerService, Part
from ledger.v1 import ledger_pb2 as pb

MESSAGE_SECONDS_MAX = 5.0
"""How long a call's message may take to arrive."""
CALLS_MAX = 1000
"""How many calls of the service may run at once; health and reflection are not counted."""
STREAMS_MAX = 500
"""How many streams may be open at once, besides those calls."""
REFUSAL_SECONDS_MAX = 2.0
"""How long somebody who does not take what comes may take to hear why it ends."""

SCOPES = {
    "GetBalance": Scope.BALANCES,
    "ListBalances": Scope.BALANCES,
    "BatchGetBalances": Scope.BALANCES,
    "ListRewards": Scope.HISTORY,
    "GetReward": Scope.HISTORY,
    "ListCurrencyTotals": Scope.TOTALS,
    "ListMovements": Scope.TOTALS,
    "GetTrialBalance": Scope.TOTALS,
    "WatchRewards": Scope.WATCH,
    "ReverseReward": Scope.REVERSE,
}
"""The scope that each method needs; a method that is not here cannot be served."""

log = logging.getLogger("ledger")

Method = Callable[[Message], Awaitable[Message]]
StreamMethod = Callable[[Message, Callable[[Exception], None]], AsyncGenerator[Part, None]]
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


class Refusal(NamedTuple):
    """What a caller is told instead of an answer."""

    problem: Problem
    details: RpcStatus

    async def tell(self, context: Context) -> None:
        """End the call with it; return when that is done, or takes too long."""
        details = (("grpc-status-details-bin", self.details.SerializeToString()),)
        # Whoever does not read, or is gone, has not heard it: grpc.aio keeps it for them for as
        # long as their connection lives, and takes the call for ended as soon as we return.
        with suppress(TimeoutError, grpc.aio.InternalError):
            async with asyncio.timeout(REFUSAL_SECONDS_MAX):
                await context.abort(self.problem.status, self.problem.text, details)


def refusal_of(error: Exception, request_id: str, token: str = "") -> Refusal:
    """What a caller is told of ``error``; a fault of ours is logged under ``request_id``."""
    problem, status = problem_of(error, token)
    if problem.status is grpc.StatusCode.INTERNAL:
        log.error("request %s: %s", request_id, where(error))
    status.details.add().Pack(RequestInfo(request_id=request_id))
    return Refusal(problem, status)


async def message_of(context: Context, seconds_max: float) -> bytes:
    """A call's next message; raises ``DeadlineExceeded``, and ``DecodeError`` when none comes."""
    try:
        async with asyncio.timeout(seconds_max):
            message = await context.read()
    except TimeoutError:
        raise DeadlineExceeded from None
    # EOF, when the caller closed its side without a word, is not bytes.
    if not isinstance(message, bytes):
        raise DecodeError
    return message


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
                request.ParseFromString(await message_of(context, self._message_seconds_max))
                reply = (await method(request)).SerializeToString()
                seen.status = OK
                return reply
            except Exception as error:
                refusal = _refusal(error, seen)
            finally:
                self._observer.observe(seen, context)
            await refusal.tell(context)
            return b""

        name = path.rpartition("/")[2]
        self._handlers[path] = grpc.stream_unary_rpc_method_handler(answer)

    def add_stream(
        self, path: str, method: StreamMethod, request_type: type[Message], scope: Scope
    ) -> None:
        """Answer calls of ``path`` with the stream that ``method`` makes of its one request.

        It ends when ``end_streams`` is called, when its caller may not have it any more, or when
        ``method`` calls what it was given for that. The status says with which token to go on.
        """

        async def write(stream: _Stream) -> None:
            self._admit(stream.context, scope, stream.seen)
            if len(self._streams) >= self._streams_max:
                raise Overloaded
            self._streams.add(stream)
            request = stream.seen.request = request_type()
            request.ParseFromString(await message_of(stream.context, self._message_seconds_max))
            async with aclosing(method(request, stream.end)) as parts:
                async for part in parts:
                    stream.token = part.token
                    await stream.context.write(part.message)

        async def answer(_requests: object, context: Context) -> None:
            seen = Observation(name)
            stream = _Stream(asyncio.current_task(), context, scope, seen)
            refusal = None
            try:
                await write(stream)
                seen.status = OK
            except asyncio.CancelledError:
                if stream.ending is None:
                    raise
                # Also behind a message that is still on its way: the status comes after it.
                refusal = _refusal(stream.ending, seen, stream.token)
            except grpc.aio.InternalError:
                # Its caller went away while it was written to: that is no fault of ours.
                raise asyncio.CancelledError from None
            except Exception as error:
                refusal = _refusal(error, seen, stream.token)
            finally:
                # Before it is told: somebody who does not read may keep that waiting.
                self._streams.discard(stream)
                self._observer.observe(seen, context)
            if refusal is not None:
                await refusal.tell(context)

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
        self.token = ""
        """Where it goes on."""
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


def _refusal(error: Exception, seen: Observation, token: str = "") -> Refusal:
    refusal = refusal_of(error, seen.request_id, token)
    seen.status, seen.reason = refusal.problem.status.name, refusal.problem.reason
    if isinstance(error, InvalidArgument):
        seen.field = error.field
    return refusal
