"""Where the service is, how it is reached, and as whom."""

import ipaddress
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import grpc

from ledger.client.errors import DOMAIN
from ledger.v1 import ledger_pb2 as pb

TIMEOUT_SECONDS = 5.0
"""How long a question may take, with all that is asked again, unless the caller says otherwise."""

_SERVICE = pb.DESCRIPTOR.services_by_name["LedgerService"].full_name

SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            # Who watches goes on from its own token, as long as it takes.
            {"name": [{"service": _SERVICE, "method": "WatchRewards"}]},
            {
                # Every call only reads, or is posted once under its key: any may be asked twice.
                "name": [{"service": _SERVICE}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.1s",
                    "backoffMultiplier": 2,
                    "maxBackoff": "1s",
                    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
                },
            },
        ],
        # Else a service that has too much to do would get five times as much.
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
    }
)
"""https://github.com/grpc/grpc/blob/master/doc/service_config.md"""

OPTIONS = (
    ("grpc.service_config", SERVICE_CONFIG),
    # Name servers can give a service config, too; that of a stranger is not wanted.
    ("grpc.service_config_disable_resolution", 1),
    # A service that was restarted is found again within the retries, not after a second and more.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # A machine that went away without a word is noticed, also by who only listens. The service
    # says something every ten seconds on a call that lasts, so it does not mind.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.primary_user_agent", DOMAIN),
)

Token: TypeAlias = str | Callable[[], str]
"""A bearer token, or what gives it for each question, so that it can change."""

_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS, all of it PEM; a private key and its certificate chain make it mutual."""

    root_certificates: bytes | None = None
    """Whom to believe; ``None``: the public authorities that gRPC knows."""
    private_key: bytes | None = field(default=None, repr=False)
    certificate_chain: bytes | None = None

    def __post_init__(self) -> None:
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("a private key and its certificate chain need each other")


class Connection(NamedTuple):
    """How a client reaches the service; made by ``connection``, and safe to use."""

    address: str
    tls: Tls | None
    token: Token | None
    timeout_seconds: float

    def channel(self, kind: Any) -> Any:
        """A channel as ``kind`` makes them: ``grpc``, or ``grpc.aio``."""
        if self.tls is None:
            # A proxy for the web, which the environment may name, would read along.
            options = (*OPTIONS, ("grpc.enable_http_proxy", 0))
            return kind.insecure_channel(self.address, options=options)
        credentials = grpc.ssl_channel_credentials(
            self.tls.root_certificates, self.tls.private_key, self.tls.certificate_chain
        )
        return kind.secure_channel(self.address, credentials, options=OPTIONS)

    def call(self, timeout_seconds: float | None) -> dict[str, Any]:
        """What goes with a call besides its request.

        The timeout is not in the service config, where no call could lengthen it.
        """
        seconds = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        return {"timeout": seconds, "metadata": self._metadata()}

    def stream(self) -> dict[str, Any]:
        """What goes with a call that has no end."""
        return {"metadata": self._metadata()}

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        if self.token is None:
            return ()
        token = self.token if isinstance(self.token, str) else self.token()
        # gRPC would put the whole of it into the text of its own error.
        if _TOKEN.fullmatch(token) is None:
            raise ValueError("the token is not made of visible ASCII characters")
        return (("authorization", f"Bearer {token}"),)


def connection(
    address: str, *, tls: Tls | bool | None, token: Token | None, timeout_seconds: float
) -> Connection:
    """The way to the service at ``address``.

    Without ``tls`` being said, it is used unless the address is of this machine. Raises
    ``ValueError`` for a token that everybody on the way could read.
    """
    is_local = is_loopback(address)
    if tls is None:
        tls = not is_local
    if not tls and token is not None and not is_local:
        raise ValueError("a token goes over TLS only, or to this machine")
    chosen = tls if isinstance(tls, Tls) else Tls() if tls else None
    return Connection(address, chosen, token, timeout_seconds)


def is_loopback(address: str) -> bool:
    """Whether ``address``, ``host:port``, cannot leave this machine; in doubt it can."""
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit()):
        return False
    try:
        return host in {"localhost", "[::1]"} or ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False
