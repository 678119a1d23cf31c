"""Where a page of history ended: an opaque token that fits its own filter only."""

import base64
import hashlib
import struct

from ledger.errors import InvalidArgument
from ledger.reading import RewardFilter

FIRST = 2**63 - 1
"""Below which number the first page starts."""

_TOKEN = struct.Struct(">q16s")


def token(number: int, chosen: RewardFilter) -> str:
    """The token of the page that follows reward ``number`` in the history ``chosen``."""
    packed = _TOKEN.pack(number, _digest(number, chosen))
    return base64.urlsafe_b64encode(packed).decode()


def start(page_token: str, chosen: RewardFilter) -> int:
    """Below which number the page starts; raises ``InvalidArgument`` for a token of another filter.

    The empty token asks for the first page.
    """
    if not page_token:
        return FIRST
    try:
        number, _ = _TOKEN.unpack(base64.urlsafe_b64decode(page_token))
    except (ValueError, struct.error):
        raise InvalidArgument("page_token", "is not one of ours") from None
    if page_token != token(number, chosen):
        raise InvalidArgument("page_token", "is not one of ours for this filter")
    return int(number)


def _digest(number: int, chosen: RewardFilter) -> bytes:
    return hashlib.sha256(repr((number, *chosen)).encode()).digest()[:16]
