"""Where a page of history ended: an opaque token that fits its own filter only."""

import struct

from ledger.errors import InvalidArgument
from ledger.history import RewardFilter
from ledger.seal import BrokenSeal, Seal

FIRST = 2**63 - 1
"""Below which number the first page starts."""

_NUMBER = struct.Struct(">q")


def token(seal: Seal, number: int, chosen: RewardFilter) -> str:
    """The token of the page that follows reward ``number`` in the history ``chosen``."""
    return seal.close(_purpose(chosen), _NUMBER.pack(number))


def start(seal: Seal, page_token: str, chosen: RewardFilter) -> int:
    """Below which number the page starts; raises ``InvalidArgument`` for a token of another filter.

    The empty token asks for the first page.
    """
    if not page_token:
        return FIRST
    try:
        (number,) = _NUMBER.unpack(seal.open(_purpose(chosen), page_token))
    except (BrokenSeal, struct.error):
        raise InvalidArgument("page_token", "is not one of ours for this filter") from None
    return int(number)


def _purpose(chosen: RewardFilter) -> bytes:
    return f"page {chosen!r}".encode()
