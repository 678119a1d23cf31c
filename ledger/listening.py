"""A gRPC server of the service: where it listens, over what, and within which bounds."""

import asyncio
from typing import Any, NamedTuple

import grpc
import grpc.aio

from ledger.access import Access, Pem
from ledger.calls import CALLS_MAX, MESSAGE_SECONDS_MAX, STREAMS_MAX, Calls
from ledger.config import AccessSettings
from ledger.observing import Observer
from ledger.probes import Health, Probes
from ledger.service import SERVICE, LedgerService

MESSAGE_SIZE_MAX_BYTES = 256 * 1024
CONNECTIONS_MAX = 900
"""How many callers may be connected at once: below the 1024 files that a process may usually have.
Whoever comes then is closed out, and gRPC tries again."""
PROBE_CONNECTIONS_MAX = 50
HANDSHAKE_SECONDS_MAX = 10
"""How long a new connection may take until it can carry calls."""
KEEPALIVE_SECONDS, KEEPALIVE_ANSWER_SECONDS_MAX = 30.0, 10.0
"""How often a silent caller is asked whether it is still there, and how long it may take to answer:
one that vanished without a word is taken for gone then, with its streams."""
CALLERS_KEEPALIVE_SECONDS_MIN = 5
"""How often callers may ask the same of us; gRPC's own bound is five minutes."""
CALLS_PER_CONNECTION_MAX = 1000
"""How many calls and streams one connection may have open; its further ones wait at the caller."""
CONNECTION_AGE_MAX_SECONDS = 600
CONNECTION_AGE_GRACE_SECONDS = 10


class Server(NamedTuple):
    """A gRPC server, its calls and its health."""

    grpc: grpc.aio.Server
    calls: Calls
    health: Health
    probes: grpc.aio.Server
    """Health and reflection alone, for those who cannot have what TLS asks for."""

    def bind(self, address: str, access: Access) -> None:
        """Serve callers at ``address``; raises ``InvalidSetting`` or ``OSError``."""
        access.check(address)
        credentials = _credentials(access)
        try:
            if credentials is None:
                self.grpc.add_insecure_port(address)
            else:
                self.grpc.add_secure_port(address, credentials)
        except RuntimeError:
            raise _taken(address) from None

    def bind_probes(self, address: str) -> None:
        """Serve health at ``address`` too, to everybody; raises ``OSError``."""
        try:
            self.probes.add_insecure_port(address)
        except RuntimeError:
            raise _taken(address) from None

    async def start(self) -> None:
        """Begin to serve."""
        await self.grpc.start()
        await self.probes.start()

    async def stop(self, seconds: float | None) -> None:
        """Take no more calls; end those that still run after ``seconds``."""
        await asyncio.gather(self.grpc.stop(seconds), self.probes.stop(seconds))


def _taken(address: str) -> OSError:
    return OSError(f"{address} cannot be bound: is something else listening there?")


def create_server(
    service: LedgerService,
    *,
    access: Access | None = None,
    observer: Observer | None = None,
    shares_port: bool = False,
    message_seconds_max: float = MESSAGE_SECONDS_MAX,
    calls_max: int = CALLS_MAX,
    streams_max: int = STREAMS_MAX,
    connections_max: int = CONNECTIONS_MAX,
) -> Server:
    """A server of ``service`` with health and reflection, not yet bound or started.

    Without ``access`` everybody may ask everything, at a loopback address.
    """
    calls = Calls(
        service,
        access or Access(AccessSettings()),
        observer or Observer(),
        message_seconds_max=message_seconds_max,
        calls_max=calls_max,
        streams_max=streams_max,
    )
    health = Health(("", SERVICE))
    open_to_all = Probes(health, (SERVICE,), message_seconds_max=message_seconds_max)
    server = grpc.aio.server(options=_options(connections_max, shares_port=shares_port))
    probes = grpc.aio.server(options=_options(PROBE_CONNECTIONS_MAX, shares_port=shares_port))
    server.add_generic_rpc_handlers((calls, open_to_all))
    probes.add_generic_rpc_handlers((open_to_all,))
    return Server(server, calls, health, probes)


def _options(connections_max: int, *, shares_port: bool) -> tuple[tuple[str, int], ...]:
    return (
        # Else a second server on the same port starts without a word.
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_receive_message_length", MESSAGE_SIZE_MAX_BYTES),
        ("grpc.max_allowed_incoming_connections", connections_max),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS_MAX * 1000),
        ("grpc.max_concurrent_streams", CALLS_PER_CONNECTION_MAX),
        ("grpc.keepalive_time_ms", int(KEEPALIVE_SECONDS * 1000)),
        ("grpc.keepalive_timeout_ms", int(KEEPALIVE_ANSWER_SECONDS_MAX * 1000)),
        # gRPC pings for its own reasons too, and while one is unanswered it asks nothing else.
        ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_ANSWER_SECONDS_MAX * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Else it is asked twice at most while nothing else is sent.
        ("grpc.http2.max_pings_without_data", 0),
        (
            "grpc.http2.min_ping_interval_without_data_ms",
            CALLERS_KEEPALIVE_SECONDS_MIN * 1000,
        ),
        ("grpc.max_connection_age_ms", CONNECTION_AGE_MAX_SECONDS * 1000),
        ("grpc.max_connection_age_grace_ms", CONNECTION_AGE_GRACE_SECONDS * 1000),
    )


def _credentials(access: Access) -> grpc.ServerCredentials | None:
    """TLS as the files say when a connection begins; ``None`` where there is none."""
    told = access.pem()
    if told is None:
        return None

    def renewed() -> "grpc.ServerCertificateConfiguration | None":
        # Called by a thread of gRPC's at the start of every connection.
        nonlocal told
        before, told = told, access.pem()
        return None if told is before or told is None else _configuration(told)

    # The stub does not know that a fetcher may say that nothing is new.
    fetcher: Any = renewed
    return grpc.dynamic_ssl_server_credentials(
        _configuration(told), fetcher, access.has_client_authorities
    )


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pem.key, pem.certificate)], pem.client_authorities
    )
