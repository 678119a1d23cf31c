"""``ledger quarantine``: what is kept there, why, and what differs from what was credited."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ledger.database import Connection
from ledger.quarantine import Kept, get_credited_bytes, get_kept

_BARE_KEY = re.compile(r'[^."\s]+')


class Difference(NamedTuple):
    """A field in which a kept delivery and the reward in the books are not the same."""

    field: str
    """Keys joined by dots; one that holds a dot, a quote or white space is spelled as in JSON."""
    kept: str | None
    """What the kept delivery says, as JSON; ``None``: nothing."""
    credited: str | None
    """What the delivery said that stands in the books; ``None``: nothing."""


class Shown(NamedTuple):
    """A kept delivery, whole."""

    kept: Kept
    credited_bytes: bytes | None
    """Of a conflict: the text of the reward that stands in the books."""
    differences: list[Difference]


async def look_at(connection: Connection, number: int) -> Shown | None:
    """The kept delivery ``number``, with what it conflicts with; ``None`` if there is none."""
    kept = await get_kept(connection, number)
    if kept is None:
        return None
    credited = None
    if kept.reward_id is not None:
        credited = await get_credited_bytes(connection, kept.reward_id)
    differences = [] if credited is None else compare(kept.believed_bytes, credited)
    return Shown(kept, credited, differences)


def compare(kept: bytes, credited: bytes) -> list[Difference]:
    """The fields in which two JSON texts differ, by their dotted paths."""
    ours, theirs = dict(_fields(_parsed(kept))), dict(_fields(_parsed(credited)))
    return [
        Difference(field, ours.get(field), theirs.get(field))
        for field in sorted(ours.keys() | theirs.keys())
        if ours.get(field) != theirs.get(field)
    ]


def _parsed(text: bytes) -> Any:  # noqa: ANN401 - any JSON value
    # Numbers as they are spelled: 15 and 15.0 are shown as what they are.
    try:
        return json.loads(text, parse_int=_Literal, parse_float=_Literal)
    except (ValueError, RecursionError):
        return text.decode(errors="replace")


class _Literal(str):
    """A number, as it was spelled."""

    __slots__ = ()


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401
    # An empty object has no fields to tell it from what is not there.
    if isinstance(value, dict) and value:
        for key, item in value.items():
            spelled = key if _BARE_KEY.fullmatch(key) else _text(key)
            yield from _fields(item, f"{path}.{spelled}" if path else spelled)
    else:
        yield path, _text(value)


def _text(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """``value`` as JSON, with its numbers as they were spelled."""
    if isinstance(value, _Literal):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(key)}: {_text(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
