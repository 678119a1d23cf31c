"""Files that an operator gives: read with care, and read again when they change.

What they hold is never part of an error here, nor of its cause, nor of a log line; nor is their
path, which may be a secret that was put in the wrong place.
"""

import logging
import os
import stat
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ledger.config import InvalidSetting

Value = TypeVar("Value")

log = logging.getLogger("ledger")


def read_file(name: str, path: str, *, size_max_bytes: int, is_secret: bool = True) -> bytes:
    """What the file at ``path`` holds; ``name`` is the setting that names it.

    Raises ``InvalidSetting`` unless it is a regular file that only its owner can write.
    """
    trouble = None
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(size_max_bytes + 1) if stat.S_ISREG(mode) else b""
    except OSError as error:
        trouble = error.strerror
    # Outside the handler, because the error quotes the path.
    if trouble is not None:
        raise InvalidSetting(name, f"cannot be read: {trouble}")
    if not stat.S_ISREG(mode):
        raise InvalidSetting(name, "must name a regular file")
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidSetting(name, "can be written by others than its owner: chmod go-w")
    if len(content) > size_max_bytes:
        raise InvalidSetting(name, f"is larger than {size_max_bytes} bytes")
    # Not refused: Docker and Kubernetes give secrets to a container like this.
    if is_secret and mode & stat.S_IROTH:
        log.warning("%s can be read by every user of this machine: chmod o-r", name)
    return content


def _without_waiting(path: str, flags: int) -> int:
    """Open without waiting for somebody to write into a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


class Followed(Generic[Value]):
    """What ``read`` makes of the files at ``paths``, as they could last be used: all or none.

    Raises ``InvalidSetting`` if they never could be.
    """

    def __init__(self, paths: Sequence[str], read: Callable[[], Value]) -> None:
        self._paths = paths
        self._read = read
        self._used = self._seen = self._look()
        self._value = read()
        self.is_behind = False
        """Whether the files hold what cannot be used, so that what they said before stays."""

    def current(self) -> Value:
        """What they said when they could last be used."""
        return self._value

    def follow(self) -> bool:
        """Read them again if they have changed, and tell whether they say something new.

        What is wrong with them is logged in one sentence.
        Call it now and then. They are read when they look the same twice in a row: not while
        somebody is still writing, or has replaced a certificate and not yet its key.
        """
        seen, self._seen = self._seen, self._look()
        if self._seen != seen or seen == self._used:
            return False
        self._used = seen
        try:
            self._value = self._read()
        except InvalidSetting as problem:
            self.is_behind = True
            log.error("%s. What was said before stays.", problem)
            return False
        self.is_behind = False
        log.info("read again what has changed")
        return True

    def _look(self) -> list[object]:
        """What tells a changed file from the one before, without reading it."""
        looks: list[object] = []
        for path in self._paths:
            try:
                found = os.stat(path)
            except OSError:
                looks.append(None)
            else:
                looks.append((found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size))
        return looks
