"""Which text of a delivery a token vouches for: that text, and no other, may be parsed.

The vendor signs with HMAC-SHA1, as 40 lower-case hex digits in one header, the compact JSON text
of the body. A delivery that was reformatted on its way still verifies, over the text that
``ingress.canonical`` gives. There is no timestamp and no delivery id in what is signed: a replay
verifies too, and it is the ledger that posts a reward only once.

Source: CustomerGlu's page on the rewards webhook, which checks ``JSON.stringify(req.body)``.
"""

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from ingress.canonical import stringify
from ingress.errors import NotBelieved, NotCanonical

_DIGEST = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Token:
    """A secret shared with the sender, believed up to and including ``not_after``.

    ``name`` is ``current`` or ``previous``, for the count of which one vouched. Raises
    ``ValueError`` for an empty secret, under which everybody can sign, and for an end without a
    time zone.
    """

    name: str
    secret: bytes = field(repr=False)
    not_after: datetime | None = None
    # Keyed once: for each body anew, that costs several times what the body's digest does.
    _keyed: hmac.HMAC = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.secret:
            raise ValueError("a token's secret is empty")
        if self.not_after is not None and self.not_after.utcoffset() is None:
            raise ValueError("a token's end has no time zone")
        object.__setattr__(self, "_keyed", hmac.new(self.secret, digestmod="sha1"))

    def digest(self, text: bytes) -> bytes:
        """Give the HMAC-SHA1 of ``text`` under this token."""
        keyed = self._keyed.copy()
        keyed.update(text)
        return keyed.digest()


class Form(StrEnum):
    """Which spelling of the body was signed: as it arrived, or its JSON.stringify text."""

    RAW = "raw"
    CANONICAL = "canonical"


@dataclass(frozen=True, slots=True)
class Believed:
    """The text that verified, the name of the token that vouches for it, and which form it is.

    The text stays out of the repr, and so out of logs: it holds coupon codes and names.
    """

    text: bytes = field(repr=False)
    token: str
    form: Form


def believe(body: bytes, header: str | None, tokens: Sequence[Token], now: datetime) -> Believed:
    """Give the text that a token vouches for: the body as it arrived, else its canonical text.

    ``header`` is the value of ``X-CG-SIGNATURE``; ``now`` is aware. Raises ``NotBelieved``, with
    a constant text, for everything else. Two such headers arrive joined by a comma and are not
    believed: nobody could say which of them was meant.
    """
    if believed := believe_raw(body, header, tokens, now):
        return believed
    return believe_canonical(body, header, tokens, now)


def believe_raw(
    body: bytes, header: str | None, tokens: Sequence[Token], now: datetime
) -> Believed | None:
    """Give the body, if a token vouches for it as it arrived; ``None`` if not.

    Raises ``NotBelieved`` where no token could vouch for any text: there is nothing to go on with.
    """
    if token := _voucher(body, _digest(header), tokens, now):
        return Believed(body, token.name, Form.RAW)
    return None


def believe_canonical(
    body: bytes, header: str | None, tokens: Sequence[Token], now: datetime
) -> Believed:
    """Give the canonical text of the body, if a token vouches for that; else ``NotBelieved``.

    It costs several times more to try than the body as it arrived, and that comes first.
    """
    try:
        text = stringify(body)
    except NotCanonical:
        raise NotBelieved("no token vouches for the body") from None
    if text != body and (token := _voucher(text, _digest(header), tokens, now)):
        return Believed(text, token.name, Form.CANONICAL)
    raise NotBelieved("no token vouches for the body")


def _digest(header: str | None) -> bytes:
    if header is None or _DIGEST.fullmatch(header) is None:
        raise NotBelieved("the signature is not 40 lower-case hex digits")
    return bytes.fromhex(header)


def _voucher(text: bytes, signature: bytes, tokens: Sequence[Token], now: datetime) -> Token | None:
    """Give the first token that has not ended under which the signature is this text's.

    Each of those is tried, even after one has matched, and compared in constant time: how long
    an answer takes tells neither which token matched nor how much of a guess was right.
    """
    voucher = None
    for token in tokens:
        if token.not_after is not None and now > token.not_after:
            continue
        if hmac.compare_digest(token.digest(text), signature) and voucher is None:
            voucher = token
    return voucher
