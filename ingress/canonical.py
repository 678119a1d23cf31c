"""The text that JavaScript's ``JSON.stringify(JSON.parse(body))`` gives, byte for byte.

The sender signs that text, so a delivery that was reformatted on its way can only be checked by
giving the same text again. It is read the way the vendor's sample reads it: as Express's
``body-parser`` in its strict mode, on Node.

Sources: ECMA-262 (``JSON.parse``, ``QuoteJSONString``, ``Number::toString`` and
``OrdinaryOwnPropertyKeys``), the WHATWG Encoding Standard ("UTF-8 decode"), and a comparison with
Node in the tests.

Whoever can reach the port can have this computed. Hence it works in linear time, to a bounded
depth, and it refuses in one way only.
"""

import codecs
import json
import re
from collections.abc import Callable
from decimal import Decimal
from itertools import accumulate
from json.encoder import encode_basestring
from typing import Any, NoReturn

from ingress.errors import NotCanonical

DEPTH_MAX = 100
"""How many objects and arrays may lie in one another; a reward needs two or three."""

_ARRAY_INDEX_MAX = 2**32 - 2
_ARRAY_INDEX = re.compile("0|[1-9][0-9]{0,9}")

# Possessive, and content with a string that never ends: a search that could come back to a quote
# inside a string would be quadratic in the number of quotes.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?')
_STEP = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_A_BRACKET = bytes(set(range(256)) - set(b"[{]}"))


def stringify(raw: bytes) -> bytes:
    """Give ``JSON.stringify(JSON.parse(raw))``, as UTF-8.

    Raises ``NotCanonical`` for what ``JSON.parse`` refuses, for a text that is neither an object
    nor an array, and for more than ``DEPTH_MAX`` levels; nothing else, whatever the bytes.
    """
    if is_too_deep(raw):
        raise NotCanonical("nested too deep")
    # Python puts one U+FFFD for each maximal subpart of an ill-formed sequence, as WHATWG does.
    text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError:
        # Without its cause, which holds the whole body.
        raise NotCanonical("not JSON") from None
    if not isinstance(value, dict | list):
        raise NotCanonical("neither an object nor an array")
    # UTF-8 has no bytes for a lone surrogate; JSON.stringify escapes it just as this handler does.
    return _TEXT_OF[type(value)](value).encode("utf-8", "backslashreplace")


def is_too_deep(raw: bytes) -> bool:
    """Whether more than ``DEPTH_MAX`` objects and arrays lie in one another.

    JSON scanners recurse, and how deep they may go differs from one interpreter to the next, so
    the bound is ours and is held before. What is not JSON may mislead the count, but only behind
    the place where the scanner stops.
    """
    # Counting is cheap and an upper bound of the depth, so an honest body is not walked twice.
    if raw.count(b"[") + raw.count(b"{") <= DEPTH_MAX:
        return False
    steps = _STRING.sub(b"", raw).translate(_STEP, _NOT_A_BRACKET)
    return max(accumulate(memoryview(steps).cast("b")), default=0) > DEPTH_MAX


def _refuse_constant(_name: str) -> NoReturn:
    """Refuse NaN and the infinities, which Python's scanner takes and JSON does not know."""
    raise NotCanonical("not a number that JSON knows")


# A float is wrong for money and right here, and only here: the sender's text has been through
# JavaScript's doubles, and only the same rounding gives the same digits. What is verified with
# this text is parsed again, exactly. Digits go straight to a float, never through int(), whose
# time is quadratic in their number.
_DECODER = json.JSONDecoder(parse_int=float, parse_constant=_refuse_constant)


def _number(value: float) -> str:
    """Write a double as ``Number::toString`` does; what overflowed is ``null``, -0 is 0.

    Python and ECMAScript agree on the digits (the shortest that read back as this double); they
    differ in when to write an exponent, and how.
    """
    size = abs(value)
    if value.is_integer() and size < 1e16:
        return repr(int(value))
    text = repr(value)
    if 1e-4 <= size < 1e16:
        return text
    if 1e-6 <= size < 1e-4:
        # Python ends such a text in e-05 or e-06.
        zeros = "0.0000" if text[-1] == "5" else "0.00000"
        digits = text[:-4].replace(".", "")
        return zeros + digits if value > 0 else f"-{zeros}{digits[1:]}"
    if 1e16 <= size < 1e21:
        return format(Decimal(text), "f")
    if size == float("inf"):
        return "null"
    return text.replace("e-0", "e-")


def _array(items: list[Any]) -> str:
    return "[" + ",".join([_TEXT_OF[type(item)](item) for item in items]) + "]"


def _object(members: dict[str, Any]) -> str:
    # Array indices come first, ascending; all other keys stay where they were first seen, which
    # is also what a dict does when a key is seen again.
    indices = [key for key in members if key.isdigit() and _is_array_index(key)]
    if indices:
        members = {key: members[key] for key in sorted(indices, key=int)} | members
    texts = [
        encode_basestring(key) + ":" + _TEXT_OF[type(item)](item) for key, item in members.items()
    ]
    return "{" + ",".join(texts) + "}"


def _is_array_index(key: str) -> bool:
    return _ARRAY_INDEX.fullmatch(key) is not None and int(key) <= _ARRAY_INDEX_MAX


# encode_basestring writes strings as JSON.stringify does: short escapes where there are any,
# \u00xx in lower case for the other control characters, everything else as it is.
_TEXT_OF: dict[type, Callable[[Any], str]] = {
    str: encode_basestring,
    float: _number,
    dict: _object,
    list: _array,
    bool: {True: "true", False: "false"}.__getitem__,
    type(None): {None: "null"}.__getitem__,
}
