"""The secrets that deliveries are believed under, from the environment or from files.

Files are read again on SIGHUP, so a token is rotated without a restart. Gunicorn's master reads
them, and the workers that it starts inherit what it holds. If the workers read them, one bad file
would shut the door: gunicorn ends altogether when a new worker cannot start.

A secret is never part of an error here, nor of its cause, nor of a log line.
"""

import os
from collections.abc import Callable, Mapping
from datetime import datetime

from ingress.signature import Token
from ledger.config import InvalidSetting
from ledger.files import read_file

UNSIGNED_ALLOWED = "yes, anybody may post rewards"
"""What ``INGRESS_ALLOW_UNSIGNED`` must say, word for word."""
FILE_SIZE_MAX_BYTES = 4096

_CURRENT = "INGRESS_TOKEN"
_PREVIOUS = "INGRESS_TOKEN_PREVIOUS"
_NOT_AFTER = "INGRESS_TOKEN_PREVIOUS_NOT_AFTER"
_FILE = "_FILE"


class Tokens:
    """The tokens as they could last be read; raises ``InvalidSetting`` if they never could."""

    def __init__(self, read: Callable[[], tuple[Token, ...]]) -> None:
        self._read = read
        self._tokens = read()

    def current(self) -> tuple[Token, ...]:
        """The tokens, the current one first; none only where unsigned deliveries are allowed."""
        return self._tokens

    def reload(self) -> InvalidSetting | None:
        """Read them again, all or none: what is wrong is returned, and those from before stay."""
        try:
            self._tokens = self._read()
        except InvalidSetting as problem:
            return problem
        return None


def read_tokens(environment: Mapping[str, str]) -> Tokens:
    """The tokens that ``environment`` holds or names files for; raises ``InvalidSetting``.

    ``INGRESS_TOKEN`` or ``INGRESS_TOKEN_FILE``, one line. ``INGRESS_TOKEN_PREVIOUS`` with
    ``INGRESS_TOKEN_PREVIOUS_NOT_AFTER``, or ``INGRESS_TOKEN_PREVIOUS_FILE``: a line with the token
    and a line with that time, or an empty file while there is no previous token.
    """
    # Of what can change later, only the files are read again.
    given = dict(environment)
    return Tokens(lambda: _read(given))


def _read(environment: Mapping[str, str]) -> tuple[Token, ...]:
    names = (_CURRENT, _CURRENT + _FILE, _PREVIOUS, _PREVIOUS + _FILE)
    given = [name for name in names if environment.get(name)]
    unsigned = environment.get("INGRESS_ALLOW_UNSIGNED")
    if unsigned and unsigned != UNSIGNED_ALLOWED:
        raise InvalidSetting("INGRESS_ALLOW_UNSIGNED", f"can only be: {UNSIGNED_ALLOWED}")
    if unsigned and given:
        raise InvalidSetting("INGRESS_ALLOW_UNSIGNED", f"contradicts {given[0]}: unset one")
    for name in (_CURRENT, _PREVIOUS):
        if {name, name + _FILE} <= set(given):
            raise InvalidSetting(name, f"contradicts {name + _FILE}: unset one")
    if unsigned:
        return ()
    current, previous = _current(environment), _previous(environment)
    return (current,) if previous is None else (current, previous)


def _current(environment: Mapping[str, str]) -> Token:
    name = _CURRENT + _FILE
    if path := environment.get(name):
        lines = _lines(name, path)
        if len(lines) != 1:
            raise InvalidSetting(name, "must hold the token as its one line")
        return Token("current", lines[0])
    if not (text := environment.get(_CURRENT)):
        raise InvalidSetting(_CURRENT, "is required")
    return Token("current", os.fsencode(text))


def _previous(environment: Mapping[str, str]) -> Token | None:
    name = _PREVIOUS + _FILE
    if path := environment.get(name):
        # Its end must be able to change together with it, which a variable cannot.
        if environment.get(_NOT_AFTER):
            raise InvalidSetting(_NOT_AFTER, f"contradicts {name}, which holds it: unset it")
        lines = _lines(name, path)
        if not lines:
            return None
        if len(lines) != 2 or not lines[0]:
            raise InvalidSetting(name, "must hold the token and, in a second line, its end")
        return Token("previous", lines[0], _time(name, os.fsdecode(lines[1])))
    if text := environment.get(_PREVIOUS):
        end = _time(_NOT_AFTER, environment.get(_NOT_AFTER, ""))
        return Token("previous", os.fsencode(text), end)
    return None


def _time(name: str, text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        # Outside the handler: the error above quotes what it read, which may be a secret.
        raise InvalidSetting(name, "must hold a time with its zone, such as 2026-12-31T00:00:00Z")
    return time


def _lines(name: str, path: str) -> list[bytes]:
    """The lines of a file that only its owner can write, without empty ones at its end."""
    content = read_file(name, path, size_max_bytes=FILE_SIZE_MAX_BYTES)
    return content.rstrip(b"\r\n").splitlines()
