"""The gRPC process: bind, serve, drain, stop."""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from functools import partial

import grpc
import grpc.aio
import uvloop
from psycopg.conninfo import make_conninfo

from ledger.access import Access
from ledger.calls import CALLS_MAX, MESSAGE_SECONDS_MAX, STREAMS_MAX, Calls
from ledger.config import ServeSettings
from ledger.counting import PUBLISH_EVERY_SECONDS
from ledger.database import Pool, Role
from ledger.errors import Unavailable, where
from ledger.exporting import exported
from ledger.listening import CONNECTIONS_MAX, Server, create_server
from ledger.metrics import Load, Metrics
from ledger.observing import observer_of
from ledger.probes import Health
from ledger.reading import BalanceKey, Reader
from ledger.reversing import reversing
from ledger.service import LedgerService

DRAIN_SECONDS_MAX = 5.0
DRAIN_SECONDS_MIN = 0.2
"""How long a call may take to reach its handler, if it had arrived when the drain began."""
POOL_SIZE_MAX = 4
HEALTH_INTERVAL_SECONDS = 1.0
HEALTH_APPLICATION = "ledger_health"
"""What Postgres calls the connection that health is looked up on."""
FILES_INTERVAL_SECONDS = 1.0
"""How often certificates and callers are looked at; they are read at the second look."""
BREAKDOWN_INTERVAL_SECONDS = 0.2
"""How often grpc.aio is asked whether it broke down."""
BIND_AGAIN_SECONDS_MAX, BIND_AGAIN_INTERVAL_SECONDS = 5.0, 0.02
"""How long the next server waits for its address then, and how often it tries."""

log = logging.getLogger("ledger")


async def serve(url: str, bind: str, settings: ServeSettings, *, shares_port: bool = False) -> None:
    """Serve on ``bind`` from the database of ``url`` until SIGTERM or SIGINT, then drain.

    ``shares_port`` lets other processes serve on the same port. Raises ``OSError`` when the
    address cannot be had, and ``InvalidSetting`` when it must not.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve_until(stop, url, bind, settings, shares_port=shares_port)


async def serve_until(
    stop: asyncio.Event,
    url: str,
    bind: str,
    settings: ServeSettings | None = None,
    *,
    shares_port: bool = False,
    message_seconds_max: float = MESSAGE_SECONDS_MAX,
    calls_max: int = CALLS_MAX,
    streams_max: int = STREAMS_MAX,
    connections_max: int = CONNECTIONS_MAX,
) -> None:
    """``serve``, until ``stop`` is set; nothing is logged or counted without ``settings``."""
    settings = settings or ServeSettings()
    access = Access(settings.access)
    observer, metrics = observer_of(settings)
    async with AsyncExitStack() as stack:
        stack.callback(observer.close)
        if metrics is not None and settings.metrics_bind is not None and not shares_port:
            # What shares its port is counted together, by whoever started it.
            stack.enter_context(exported(settings.metrics_bind, metrics.registry))
        pool = await stack.enter_async_context(Pool(url, Role.READER, size_max=POOL_SIZE_MAX))
        reader = Reader(pool, metrics.batch) if metrics is not None else Reader(pool)
        reverse = await stack.enter_async_context(reversing(url)) if settings.corrects else None
        # A connection of its own: however much is asked, it can be said whether we serve.
        looking = make_conninfo(url, application_name=HEALTH_APPLICATION)
        health_pool = await stack.enter_async_context(Pool(looking, Role.READER, size_max=1))
        drains: list[asyncio.Task[None]] = []
        while not stop.is_set():
            server = create_server(
                LedgerService(reader, reverse),
                access=access,
                observer=observer,
                shares_port=shares_port,
                message_seconds_max=message_seconds_max,
                calls_max=calls_max,
                streams_max=streams_max,
                connections_max=connections_max,
            )
            is_again = bool(drains)
            await _bind(partial(server.bind, bind, access), is_again=is_again)
            if settings.health_bind is not None:
                await _bind(partial(server.bind_probes, settings.health_bind), is_again=is_again)
            log.info("serving on %s, %s", bind, access.explain())
            beside = [
                _follow_database(Reader(health_pool), server.health),
                _follow_files(access, server.calls),
            ]
            if metrics is not None:
                beside.append(_keep_publishing(metrics, server.calls, pool, access))
            if await _run(server, stop, beside):
                # Its callers go on with it while the next one serves already.
                drains = [drain for drain in drains if not drain.done()]
                drains.append(asyncio.create_task(_drain(server)))
        await asyncio.gather(*drains)


async def _bind(bind: Callable[[], None], *, is_again: bool) -> None:
    """Call ``bind``; again for a moment when a server before may still have the address."""
    loop = asyncio.get_running_loop()
    gives_up_at = loop.time() + (BIND_AGAIN_SECONDS_MAX if is_again else 0)
    while True:
        try:
            return bind()
        except OSError:
            if loop.time() >= gives_up_at:
                raise
        await asyncio.sleep(BIND_AGAIN_INTERVAL_SECONDS)


async def _run(
    server: Server, stop: asyncio.Event, beside: Iterable[Coroutine[None, None, None]]
) -> bool:
    """Serve until ``stop`` is set, and drain; or until grpc.aio breaks down, which it says.

    A path that is not UTF-8 is enough for that: grpc.aio closes its port, and the process lives on
    without a word. What runs then is left to run, and still has to be drained. ``beside`` runs
    meanwhile.
    """
    await server.start()
    tasks = [asyncio.create_task(coroutine) for coroutine in beside]
    breaking = {asyncio.create_task(_break_down(each)) for each in (server.grpc, server.probes)}
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({*breaking, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if broken := done & breaking:
        log.error("the server broke down and starts again: %s", broken.pop().result())
    else:
        await _drain(server)
    for task in (*tasks, *breaking, stopping):
        task.cancel()
    return bool(done & breaking)


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
    """Take no more calls, end the streams, let the running calls finish, and stop."""
    server.health.leave()
    stopping = asyncio.create_task(server.stop(DRAIN_SECONDS_MAX))
    server.calls.end_streams()
    await asyncio.wait({stopping}, timeout=DRAIN_SECONDS_MIN)
    draining = asyncio.create_task(server.calls.drain())
    await asyncio.wait({stopping, draining}, return_when=asyncio.FIRST_COMPLETED)
    draining.cancel()
    # Whoever watches health, or left reflection open, would hold us up for the whole time.
    await server.stop(None)
    await stopping


async def _follow_database(reader: Reader, health: Health) -> None:
    """Say NOT_SERVING while the books cannot be read, and SERVING when they can."""
    while True:
        try:
            await reader.balance(BalanceKey("health", "XXX"))
        except Exception as error:  # noqa: BLE001 - whatever it is, we do not serve
            if not isinstance(error, Unavailable):
                log.error("%s", where(error))
            health.set(serves=False)
        else:
            health.set(serves=True)
        await asyncio.sleep(HEALTH_INTERVAL_SECONDS)


async def _follow_files(access: Access, calls: Calls) -> None:
    """Read certificates and callers again when they change."""
    while True:
        await asyncio.sleep(FILES_INTERVAL_SECONDS)
        if access.follow():
            calls.check_streams()


async def _keep_publishing(metrics: Metrics, calls: Calls, pool: Pool, access: Access) -> None:
    """Publish what is counted, every second and at the end."""

    def publish() -> None:
        metrics.publish(Load(calls.running, calls.streams, *pool.stats(), access.is_behind))

    try:
        while True:
            # To be blind is no reason to stop: whatever goes wrong here, callers are answered.
            try:
                publish()
            except Exception as error:
                log.warning("the metrics stand still: %s", where(error))
            await asyncio.sleep(PUBLISH_EVERY_SECONDS)
    finally:
        publish()


def run(
    url: str, bind: str, settings: ServeSettings | None = None, *, shares_port: bool = False
) -> None:
    """``serve`` on uvloop, for a process of its own."""
    uvloop.run(serve(url, bind, settings or ServeSettings(), shares_port=shares_port))
