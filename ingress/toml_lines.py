"""TOML, and the line on which each thing in it stands, which ``tomllib`` does not tell."""

import re
import tomllib
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any


class InvalidToml(Exception):
    """The text cannot be read as TOML: ``line`` says where, ``reason`` why, without its values."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(line, reason)
        self.line = line
        self.reason = reason


def load(text: str) -> dict[str, Any]:
    """What the TOML ``text`` says, its decimals exact; raises ``InvalidToml``."""
    try:
        return tomllib.loads(text + "\n", parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).rpartition(" (at ")
        found = re.match(r"line (\d+),", place)
        line = int(found[1]) if found else _unread_line(text)
    except (ValueError, ArithmeticError, RecursionError):
        reason, line = "A number or a nesting is beyond what can be read", _unread_line(text)
    # Without its cause, which holds the whole text in newer versions of Python.
    raise InvalidToml(line, reason)


def line_of(text: str, keys: Sequence[str]) -> int:
    """The first line of the statement by which ``keys`` come into the TOML ``text``."""
    return next(line for line, told in _statements(text) if _holds(told, keys))


def _unread_line(text: str) -> int:
    return next(line for line, told in _statements(text) if told is None)


def _statements(text: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The first line of each statement, and what it says; ``None`` when it cannot be read.

    Each is read by itself under the header that it stands under. Nothing but the end of a
    statement makes it readable: a list or a text over several lines is open until then.
    """
    header, statement, first = "", "", 1
    for number, line in enumerate(text.split("\n"), 1):
        rest = line
        if not statement:
            first = number
            # Only a header begins with a bracket, and it has its line for itself.
            if line.lstrip().startswith("["):
                header, rest = line + "\n", ""
        statement += rest + "\n"
        try:
            told = tomllib.loads(header + statement, parse_float=Decimal)
        except tomllib.TOMLDecodeError:
            continue
        except (ValueError, ArithmeticError, RecursionError):
            break
        yield first, told
        statement = ""
    if statement:
        yield first, None


def _holds(told: Any, keys: Sequence[str]) -> bool:  # noqa: ANN401 - any TOML value
    for key in keys:
        if not isinstance(told, dict) or key not in told:
            return False
        told = told[key]
    return True
