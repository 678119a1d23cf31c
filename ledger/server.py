"""The gRPC process: bind, serve, drain, stop."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import NamedTuple, NoReturn, TypeAlias

import grpc
import grpc.aio
import uvloop
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection, reflection_pb2

from ledger.database import Pool, Role
from ledger.errors import DeadlineExceeded, Overloaded, Unavailable, where
from ledger.reading import BalanceKey, Reader
from ledger.service import SERVICE, LedgerService, problem_of
from ledger.v1 import ledger_pb2 as pb

MESSAGE_SIZE_MAX_BYTES = 256 * 1024
MESSAGE_SECONDS_MAX = 5.0
"""How long a call's message may take to arrive."""
CALLS_MAX = 1000
"""How many calls of the service may run at once; health and reflection are not counted."""
CONNECTION_AGE_MAX_SECONDS = 600
CONNECTION_AGE_GRACE_SECONDS = 10
DRAIN_SECONDS_MAX = 5.0
DRAIN_SECONDS_MIN = 0.2
"""How long a call may take to reach its handler, if it had arrived when the drain began."""
POOL_SIZE_MAX = 4
HEALTH_INTERVAL_SECONDS = 1.0
BREAKDOWN_INTERVAL_SECONDS = 0.2
"""How often grpc.aio is asked whether it broke down."""
HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
REFLECTION_SERVICES = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)
"""The package serves v1alpha only; v1 is the same messages under another name."""

log = logging.getLogger("ledger")

Method = Callable[[Message], Awaitable[Message]]
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


class Calls(grpc.GenericRpcHandler):
    """The service's calls: each message within a time limit, each error as its status.

    One handler for all methods: grpc.aio waits anew on each registered method for every call.
    """

    def __init__(
        self, service: LedgerService, *, message_seconds_max: float, calls_max: int
    ) -> None:
        self._message_seconds_max = message_seconds_max
        self._calls_max = calls_max
        self._running = 0
        self._nothing_runs = asyncio.Event()
        self._nothing_runs.set()
        self._handlers: dict[str, Handler] = {}
        for method in pb.DESCRIPTOR.services_by_name["LedgerService"].methods:
            self.add(
                f"/{SERVICE}/{method.name}",
                getattr(service, _snake_case(method.name)),
                getattr(pb, method.input_type.name),
            )

    def add(self, path: str, method: Method, request_type: type[Message]) -> None:
        """Answer calls of ``path`` by ``method``, which takes a ``request_type``.

        A unary handler of grpc.aio waits for ever for a message that never comes. This one takes
        its one message from a stream instead; on the wire there is no difference.
        """

        async def answer(_requests: object, context: Context) -> bytes:
            try:
                self._begin(context)
                request = request_type()
                request.ParseFromString(await self._message(context))
                return (await method(request)).SerializeToString()
            except Exception as error:
                await _refuse(error, context)

        self._handlers[path] = grpc.stream_unary_rpc_method_handler(answer)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "Handler | None":
        """The handler of a call's method; ``None`` becomes UNIMPLEMENTED."""
        return self._handlers.get(handler_call_details.method)

    async def drain(self) -> None:
        """Returns when every running call has been answered and its answer was sent."""
        await self._nothing_runs.wait()

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


def _snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


async def _refuse(error: Exception, context: Context) -> NoReturn:
    problem, status = problem_of(error)
    if problem.status is grpc.StatusCode.INTERNAL:
        log.error("%s", where(error))
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(problem.status, problem.text, details)


class Server(NamedTuple):
    """A gRPC server, its calls and its health."""

    grpc: grpc.aio.Server
    calls: Calls
    health: health.HealthServicer


def create_server(
    service: LedgerService,
    *,
    shares_port: bool = False,
    message_seconds_max: float = MESSAGE_SECONDS_MAX,
    calls_max: int = CALLS_MAX,
) -> Server:
    """A server of ``service`` with health and reflection, not yet bound or started."""
    server = grpc.aio.server(
        options=(
            # Else a second server on the same port starts without a word.
            ("grpc.so_reuseport", int(shares_port)),
            ("grpc.max_receive_message_length", MESSAGE_SIZE_MAX_BYTES),
            ("grpc.max_connection_age_ms", CONNECTION_AGE_MAX_SECONDS * 1000),
            ("grpc.max_connection_age_grace_ms", CONNECTION_AGE_GRACE_SECONDS * 1000),
        )
    )
    calls = Calls(service, message_seconds_max=message_seconds_max, calls_max=calls_max)
    healths = health.HealthServicer()
    server.add_generic_rpc_handlers((calls, *_health(healths), *_reflection()))
    return Server(server, calls, healths)


# Not the packages' own functions, which register each method: see ``Calls``.
def _health(healths: health.HealthServicer) -> tuple[grpc.GenericRpcHandler, ...]:
    types = (
        health_pb2.HealthCheckRequest.FromString,
        health_pb2.HealthCheckResponse.SerializeToString,
    )
    methods = {
        "Check": grpc.unary_unary_rpc_method_handler(healths.Check, *types),
        "Watch": grpc.unary_stream_rpc_method_handler(healths.Watch, *types),
    }
    return (grpc.method_handlers_generic_handler(HEALTH_SERVICE, methods),)


def _reflection() -> tuple[grpc.GenericRpcHandler, ...]:
    servicer = reflection.aio.ReflectionServicer((SERVICE, HEALTH_SERVICE, *REFLECTION_SERVICES))
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return tuple(
        grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
        for name in REFLECTION_SERVICES
    )


async def serve(url: str, bind: str, *, shares_port: bool = False) -> None:
    """Serve on ``bind`` from the database of ``url`` until SIGTERM or SIGINT, then drain.

    ``shares_port`` lets other processes serve on the same port. Raises ``OSError`` when the
    address cannot be had.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve_until(stop, url, bind, shares_port=shares_port)


async def serve_until(
    stop: asyncio.Event,
    url: str,
    bind: str,
    *,
    shares_port: bool = False,
    message_seconds_max: float = MESSAGE_SECONDS_MAX,
    calls_max: int = CALLS_MAX,
) -> None:
    """``serve``, until ``stop`` is set."""
    async with Pool(url, Role.READER, size_max=POOL_SIZE_MAX) as pool:
        reader = Reader(pool)
        while not stop.is_set():
            server = create_server(
                LedgerService(reader),
                shares_port=shares_port,
                message_seconds_max=message_seconds_max,
                calls_max=calls_max,
            )
            try:
                server.grpc.add_insecure_port(bind)
            except RuntimeError:
                raise OSError(
                    f"{bind} cannot be bound: is something else listening there?"
                ) from None
            log.info("serving on %s", bind)
            await _run(server, reader, stop)


async def _run(server: Server, reader: Reader, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set, or until grpc.aio breaks down.

    A path that is not UTF-8 is enough for that: grpc.aio closes its port, and the process lives on
    without a word.
    """
    await _tell(server.health, is_serving=False)
    await server.grpc.start()
    following = asyncio.create_task(_follow_database(reader, server.health))
    breaking = asyncio.create_task(_break_down(server.grpc))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({breaking, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if breaking.done():
        log.error("the server broke down and starts again: %s", breaking.result())
        await server.grpc.stop(None)
    else:
        await _drain(server)
    for task in (following, breaking, stopping):
        task.cancel()


async def _break_down(server: grpc.aio.Server) -> str:
    """Returns what broke and where, as soon as ``server`` takes no calls any more."""
    try:
        # While calls are running still, the breakdown is told only at the end of a limited wait.
        while await server.wait_for_termination(BREAKDOWN_INTERVAL_SECONDS):
            pass
    except Exception as error:  # noqa: BLE001 - every one of them is a breakdown
        return where(error)
    return "stopped"


async def _drain(server: Server) -> None:
    """Take no more calls, let the running ones finish, then end the streams and stop."""
    await server.health.enter_graceful_shutdown()
    stopping = asyncio.create_task(server.grpc.stop(DRAIN_SECONDS_MAX))
    await asyncio.wait({stopping}, timeout=DRAIN_SECONDS_MIN)
    draining = asyncio.create_task(server.calls.drain())
    await asyncio.wait({stopping, draining}, return_when=asyncio.FIRST_COMPLETED)
    draining.cancel()
    # Whoever watches health, or left reflection open, would hold us up for the whole time.
    await server.grpc.stop(None)
    await stopping


async def _follow_database(reader: Reader, healths: health.HealthServicer) -> None:
    """Say NOT_SERVING while the books cannot be read, and SERVING when they can."""
    while True:
        try:
            await reader.balance(BalanceKey("health", "XXX"))
        except Exception as error:  # noqa: BLE001 - whatever it is, we do not serve
            if not isinstance(error, Unavailable):
                log.error("%s", where(error))
            await _tell(healths, is_serving=False)
        else:
            await _tell(healths, is_serving=True)
        await asyncio.sleep(HEALTH_INTERVAL_SECONDS)


async def _tell(healths: health.HealthServicer, *, is_serving: bool) -> None:
    statuses = health_pb2.HealthCheckResponse
    for name in ("", SERVICE):
        await healths.set(name, statuses.SERVING if is_serving else statuses.NOT_SERVING)


def run(url: str, bind: str, *, shares_port: bool = False) -> None:
    """``serve`` on uvloop, for a process of its own."""
    uvloop.run(serve(url, bind, shares_port=shares_port))
