"""What everybody may ask, known or not: health and reflection, within bounds.

The packages' own servicers have none: one waits for ever for a message, and a single stream that
is not read keeps the health of the others from ever changing.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import aclosing, contextmanager
from random import getrandbits
from typing import TypeAlias

import grpc
import grpc.aio
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status as RpcStatus
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from ledger.calls import Context, Handler, Refusal, message_of, refusal_of
from ledger.errors import Overloaded
from ledger.problems import DOMAIN, Problem

STREAMS_MAX = 200
"""How many streams of health and reflection may be open at once."""
STREAMS_PER_CONNECTION_MAX = 10
"""How many of them may be of one connection, so that one stranger cannot have them all."""

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
REFLECTION = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)
"""The package serves v1alpha only; v1 is the same messages under another name."""
NO_SUCH_SERVICE = Problem(
    grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND", "no service has this name here"
)

Answer: TypeAlias = Callable[[object, Context], Awaitable[bytes | None]]


class Health:
    """Whether the services of ``names`` serve; they do not until it is said."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._serves = False
        self._is_leaving = False
        self._changed = asyncio.Event()

    def set(self, *, serves: bool) -> None:
        """Say whether they serve, and tell those who watch."""
        serves = serves and not self._is_leaving
        if serves != self._serves:
            self._serves = serves
            self._changed.set()
            self._changed = asyncio.Event()

    def leave(self) -> None:
        """They do not serve from now on, whatever is said later."""
        self._is_leaving = True
        self.set(serves=False)

    def of(self, name: str) -> "health_pb2.HealthCheckResponse.ServingStatus | None":
        """The status of a service, or ``None`` if there is none of this name."""
        statuses = health_pb2.HealthCheckResponse
        if name not in self._names:
            return None
        return statuses.SERVING if self._serves else statuses.NOT_SERVING

    async def change(self) -> None:
        """Returns when what was said has changed."""
        await self._changed.wait()


class Probes(grpc.GenericRpcHandler):
    """Answers health checks from ``health``, and reflection about ``services``."""

    def __init__(
        self, health: Health, services: Collection[str], *, message_seconds_max: float
    ) -> None:
        self._health = health
        self._message_seconds_max = message_seconds_max
        self._reflection = reflection.aio.ReflectionServicer((*services, HEALTH, *REFLECTION))
        self._streams: Counter[str] = Counter()
        """How many are open, by connection."""
        self._handlers: dict[str, Handler] = {
            f"/{HEALTH}/Check": grpc.stream_unary_rpc_method_handler(_refusing(self._check)),
            f"/{HEALTH}/Watch": grpc.stream_stream_rpc_method_handler(_refusing(self._watch)),
        }
        for name in REFLECTION:
            path = f"/{name}/ServerReflectionInfo"
            self._handlers[path] = grpc.stream_stream_rpc_method_handler(_refusing(self._reflect))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "Handler | None":
        """The handler of a call's method, if it is one of these."""
        return self._handlers.get(handler_call_details.method)

    async def _check(self, context: Context) -> bytes | None:
        request = await self._health_request(context)
        status = self._health.of(request.service)
        if status is None:
            await _no_such_service().tell(context)
            return b""
        reply = health_pb2.HealthCheckResponse(status=status)
        return bytes(reply.SerializeToString())

    async def _watch(self, context: Context) -> None:
        with self._stream(context):
            request = await self._health_request(context)
            unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            told = None
            while True:
                status = self._health.of(request.service) or unknown
                if status == told:
                    await self._health.change()
                else:
                    told = status
                    reply = health_pb2.HealthCheckResponse(status=status)
                    await context.write(reply.SerializeToString())

    async def _health_request(self, context: Context) -> health_pb2.HealthCheckRequest:
        message = await message_of(context, self._message_seconds_max)
        return health_pb2.HealthCheckRequest.FromString(message)

    async def _reflect(self, context: Context) -> None:
        async def asked() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            message: object = await message_of(context, self._message_seconds_max)
            while isinstance(message, bytes):
                yield reflection_pb2.ServerReflectionRequest.FromString(message)
                message = await context.read()

        with self._stream(context):
            async with aclosing(self._reflection.ServerReflectionInfo(asked(), context)) as replies:
                async for reply in replies:
                    await context.write(reply.SerializeToString())

    @contextmanager
    def _stream(self, context: Context) -> Iterator[None]:
        connection = context.peer()
        if (
            self._streams.total() >= STREAMS_MAX
            or self._streams[connection] >= STREAMS_PER_CONNECTION_MAX
        ):
            raise Overloaded
        self._streams[connection] += 1
        try:
            yield
        finally:
            self._streams[connection] -= 1
            if not self._streams[connection]:
                del self._streams[connection]


def _refusing(answer: Callable[[Context], Awaitable[bytes | None]]) -> Answer:
    """``answer``, whose errors become what its caller is told."""

    async def answer_or_refuse(_requests: object, context: Context) -> bytes | None:
        try:
            return await answer(context)
        except grpc.aio.AbortError:
            raise
        except grpc.aio.InternalError:
            # The caller went away while it was written to.
            raise asyncio.CancelledError from None
        except Exception as error:
            refusal = refusal_of(error, _request_id())
        await refusal.tell(context)
        return b""

    return answer_or_refuse


def _no_such_service() -> Refusal:
    status = RpcStatus(code=NO_SUCH_SERVICE.status.value[0], message=NO_SUCH_SERVICE.text)
    status.details.add().Pack(ErrorInfo(reason=NO_SUCH_SERVICE.reason, domain=DOMAIN))
    return Refusal(NO_SUCH_SERVICE, status)


def _request_id() -> str:
    return f"{getrandbits(64):016x}"  # noqa: S311 - not a secret
