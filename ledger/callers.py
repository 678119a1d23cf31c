"""Who may ask, and what: callers, how each is known, and their scopes.

An operator names them in a TOML file, one table for each, under a name of his choice::

    [reporting]
    token_sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    certificate = "reporting.internal"
    scopes = ["balances", "totals"]

A caller is known by a bearer token, by a client certificate, or by either; ``token_sha256`` and
``certificate`` may each be a list, so that one can follow the other without a gap. A certificate
is known by any of its subject's alternative names or, if it has none, by its common name.
"""

import hmac
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from enum import StrEnum
from hashlib import sha256
from typing import Any, NamedTuple

from ledger.config import InvalidSetting
from ledger.errors import Unauthenticated

CALLERS = "LEDGER_CALLERS"
"""The setting that names the file."""
CALLER_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Scope(StrEnum):
    """What a caller may ask for."""

    BALANCES = "balances"
    HISTORY = "history"
    TOTALS = "totals"
    WATCH = "watch"
    REVERSE = "reverse"
    CODES = "codes"
    """Coupon codes, where rewards are told; opens nothing by itself."""


class Caller(NamedTuple):
    """Somebody who asks."""

    name: str
    scopes: frozenset[Scope]


ANYBODY = Caller("anybody", frozenset(Scope) - {Scope.REVERSE})
"""Who asks where nobody has to say who they are. Who corrects is kept in the books by name."""
NOBODY = Caller("nobody", frozenset())

calling: ContextVar[Caller] = ContextVar("calling", default=NOBODY)
"""Who asks in the call that runs; nobody, who may see nothing, outside of one."""


class Callers:
    """All callers, found by what vouches for them."""

    def __init__(
        self, by_digest: Mapping[bytes, Caller], by_certificate: Mapping[str, Caller]
    ) -> None:
        self._by_digest = tuple(by_digest.items())
        self._by_certificate = dict(by_certificate)

    @property
    def have_certificates(self) -> bool:
        """Whether some of them are known by a certificate."""
        return bool(self._by_certificate)

    def of_authorization(self, value: str) -> Caller:
        """The caller whose token the ``authorization`` header bears; raises ``Unauthenticated``."""
        scheme, _, token = value.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated
        digest = sha256(token.encode()).digest()
        found = None
        # All of them, each in constant time: how long it takes tells nothing.
        for known, caller in self._by_digest:
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise Unauthenticated
        return found

    def of_certificate(self, names: Iterable[bytes]) -> Caller:
        """The caller whose certificate has one of ``names``; raises ``Unauthenticated``.

        Also when the names are of several callers.
        """
        known = (self._by_certificate.get(name.decode(errors="replace")) for name in names)
        found = {caller.name: caller for caller in known if caller is not None}
        if len(found) != 1:
            raise Unauthenticated
        (caller,) = found.values()
        return caller


_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_KEYS = {"token_sha256", "certificate", "scopes"}


def read_callers(content: bytes) -> Callers:
    """The callers that a file tells of; raises ``InvalidSetting``, without a word of the file."""
    tables = _tables(content)
    by_digest: dict[bytes, Caller] = {}
    by_certificate: dict[str, Caller] = {}
    for place, (name, table) in enumerate(tables.items(), start=1):
        caller, digests, certificates = _caller(place, name, table)
        for digest in digests:
            if by_digest.setdefault(digest, caller) is not caller:
                raise _wrong(place, "has the token of another")
        for certificate in certificates:
            if by_certificate.setdefault(certificate, caller) is not caller:
                raise _wrong(place, "has the certificate of another")
    return Callers(by_digest, by_certificate)


def _tables(content: bytes) -> dict[str, Any]:
    trouble = None
    try:
        tables = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        place = re.search(r"\(at (line \d+),", str(error))
        trouble = place[1] if place else "its end"
    # Outside the handler, because the error quotes the file.
    if trouble is not None:
        raise InvalidSetting(CALLERS, f"is not TOML in UTF-8: look at {trouble}")
    if not tables:
        raise InvalidSetting(CALLERS, "names no caller")
    return tables


def _caller(place: int, name: str, table: object) -> tuple[Caller, set[bytes], set[str]]:
    if not isinstance(table, dict):
        raise _wrong(place, "is not a table")
    if CALLER_NAME.fullmatch(name) is None:
        raise _wrong(place, "has a name that is not 1 to 64 letters, digits, - or _")
    if unknown := len(table.keys() - _KEYS):
        raise _wrong(place, f"has {unknown} keys other than {', '.join(sorted(_KEYS))}")
    digests = set()
    for text in _texts(place, table, "token_sha256"):
        if _DIGEST.fullmatch(text) is None:
            raise _wrong(place, "has a token_sha256 that is not 64 hexadecimal digits")
        digests.add(bytes.fromhex(text))
    certificates = set(_texts(place, table, "certificate"))
    if not digests | certificates:
        raise _wrong(place, "has neither token_sha256 nor certificate")
    scopes = set(_texts(place, table, "scopes"))
    if not scopes or scopes - set(Scope):
        raise _wrong(place, f"has scopes other than {', '.join(Scope)}, or none")
    return Caller(name, frozenset(map(Scope, scopes))), digests, certificates


def _texts(place: int, table: Mapping[str, object], key: str) -> Iterator[str]:
    given = table.get(key, [])
    for text in given if isinstance(given, list) else [given]:
        if not isinstance(text, str) or not text:
            raise _wrong(place, f"has a {key} that is not a text, or a list of texts")
        yield text


def _wrong(place: int, reason: str) -> InvalidSetting:
    return InvalidSetting(CALLERS, f"cannot be used: caller {place} of the file {reason}")
