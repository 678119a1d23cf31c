"""Where a watcher stands in the commit order, and the opaque token that says so."""

import struct
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from ledger.errors import InvalidArgument
from ledger.seal import BrokenSeal, Seal

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PAYLOAD = struct.Struct(">qqq")
_PURPOSE = b"watch"


class Place(NamedTuple):
    """Behind which reward a watcher goes on; the greater one is the later one."""

    position: int
    """Of the commit that brought the reward."""
    number: int
    """Of the reward: the order within its commit."""
    committed_at: datetime
    """Of the commit; books that were restored may have given its position to another."""


BEGINNING = Place(0, 0, _EPOCH)
"""Before the first reward."""


def token(seal: Seal, place: Place) -> str:
    """The token of ``place``."""
    microseconds = (place.committed_at - _EPOCH) // _MICROSECOND
    return seal.close(_PURPOSE, _PAYLOAD.pack(place.position, place.number, microseconds))


def place_of(seal: Seal, token: str) -> Place:
    """The place that ``token`` was made of; raises ``InvalidArgument``."""
    try:
        position, number, microseconds = _PAYLOAD.unpack(seal.open(_PURPOSE, token))
    except (BrokenSeal, struct.error):
        raise InvalidArgument("token", "is not one of ours") from None
    return Place(position, number, _EPOCH + microseconds * _MICROSECOND)
