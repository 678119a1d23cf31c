"""Over what callers are heard, and how each is known: TLS and callers, from files.

The files are read again when they change. Whoever has neither TLS nor callers serves loopback
only, and there everybody may ask everything.
"""

import ipaddress
import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple, Protocol

from ledger.callers import ANYBODY, CALLERS, Caller, Callers, read_callers
from ledger.config import AccessSettings, InvalidSetting, TlsSettings
from ledger.errors import Unauthenticated
from ledger.files import Followed, read_file

FILE_SIZE_MAX_BYTES = 1024 * 1024

_CERTIFICATE = "LEDGER_TLS_CERTIFICATE"
_KEY = "LEDGER_TLS_KEY"
_AUTHORITIES = "LEDGER_TLS_CLIENT_AUTHORITIES"


class Pem(NamedTuple):
    """What TLS needs, as PEM."""

    key: bytes
    certificate: bytes
    client_authorities: bytes | None


class Call(Protocol):
    """What is known of a call besides its message: a part of ``grpc.aio.ServicerContext``."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Its headers."""
        ...

    def peer(self) -> str:
        """The other end of the connection, as gRPC writes it."""
        ...

    def peer_identities(self) -> Iterable[bytes] | None:
        """The names in the client certificate that TLS has checked."""
        ...

    def time_remaining(self) -> float | None:
        """How many seconds are left of its deadline."""
        ...


class Access:
    """Who may ask; raises ``InvalidSetting`` when the files cannot be used at the start."""

    def __init__(self, settings: AccessSettings) -> None:
        self._pem: Followed[Pem] | None = None
        self._callers: Followed[Callers] | None = None
        self._has_authorities = False
        if (tls := settings.tls) is not None:
            paths = (tls.certificate, tls.key, tls.client_authorities)
            self._has_authorities = tls.client_authorities is not None
            self._pem = Followed([path for path in paths if path], lambda: _read_pem(tls))
        if (path := settings.callers) is not None:
            self._callers = Followed([path], lambda: self._read_callers(path))

    def check(self, bind: str) -> None:
        """Raises ``InvalidSetting`` where strangers could ask at ``bind``, or read along."""
        if (self._pem is None or self._callers is None) and not is_loopback(bind):
            raise InvalidSetting(
                "LEDGER_BIND",
                f"is not a loopback address, so {_CERTIFICATE}, {_KEY} and {CALLERS} are required:"
                " else anybody could read the books there",
            )

    def explain(self) -> str:
        """Who is heard, for the operator's log."""
        over = "without TLS, so on loopback only"
        if self._pem is not None:
            over = "over TLS"
            if self._has_authorities:
                over = "over TLS, with client certificates"
        if self._callers is not None:
            return f"for the callers of {CALLERS}, {over}"
        return f"for everybody who reaches it, without {CALLERS} and so on loopback only, {over}"

    def pem(self) -> Pem | None:
        """What new connections are met with; ``None`` where there is no TLS."""
        return None if self._pem is None else self._pem.current()

    @property
    def has_client_authorities(self) -> bool:
        """Whether every caller must have a certificate."""
        return self._has_authorities

    def caller(self, call: Call) -> Caller:
        """Who asks; raises ``Unauthenticated``. A token, where there is one, decides alone."""
        if self._callers is None:
            return ANYBODY
        callers = self._callers.current()
        values = [v for name, v in call.invocation_metadata() or () if name == "authorization"]
        if not values:
            return callers.of_certificate(call.peer_identities() or ())
        if len(values) > 1:
            raise Unauthenticated
        return callers.of_authorization(str(values[0]))

    def follow(self) -> bool:
        """Read again what has changed, and tell whether something did; call it now and then."""
        news = [f.follow() for f in (self._pem, self._callers) if f is not None]
        return any(news)

    @property
    def is_behind(self) -> bool:
        """Whether files hold what cannot be used, so that what they said before stays."""
        return any(f is not None and f.is_behind for f in (self._pem, self._callers))

    def _read_callers(self, path: str) -> Callers:
        callers = read_callers(read_file(CALLERS, path, size_max_bytes=FILE_SIZE_MAX_BYTES))
        if callers.have_certificates and not self._has_authorities:
            raise InvalidSetting(CALLERS, f"names certificates, so {_AUTHORITIES} is required")
        return callers


def is_loopback(bind: str) -> bool:
    """Whether ``bind``, host and port, cannot be reached from another machine; in doubt it can."""
    host = bind.rpartition(":")[0].strip("[]")
    try:
        found = socket.getaddrinfo(host, None)
        return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)
    except (OSError, ValueError):
        return False


def _read_pem(tls: TlsSettings) -> Pem:
    pem = _read_files(tls)
    # By paths, because a key of ours shall not be written anywhere else: so the files must not
    # have changed meanwhile.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    is_pair = is_authority = False
    with suppress(ssl.SSLError, OSError):
        # With no password, which would be asked for at the terminal.
        context.load_cert_chain(tls.certificate, tls.key, password="")
        is_pair = pem == _read_files(tls)
    if not is_pair:
        raise InvalidSetting(
            _CERTIFICATE, f"and {_KEY} are no certificate with its open key in PEM"
        )
    if pem.client_authorities is not None:
        with suppress(ssl.SSLError, ValueError):
            context.load_verify_locations(cadata=pem.client_authorities.decode("ascii"))
            is_authority = True
        if not is_authority:
            raise InvalidSetting(_AUTHORITIES, "holds no certificates in PEM")
    return pem


def _read_files(tls: TlsSettings) -> Pem:
    authorities = None
    if tls.client_authorities is not None:
        authorities = read_file(
            _AUTHORITIES,
            tls.client_authorities,
            size_max_bytes=FILE_SIZE_MAX_BYTES,
            is_secret=False,
        )
    return Pem(
        key=read_file(_KEY, tls.key, size_max_bytes=FILE_SIZE_MAX_BYTES),
        certificate=read_file(
            _CERTIFICATE, tls.certificate, size_max_bytes=FILE_SIZE_MAX_BYTES, is_secret=False
        ),
        client_authorities=authorities,
    )
