"""How far verifying has come: a small file, because verifying never writes to the books."""

import os
from pathlib import Path

import msgspec

from ledger.operations.finding import Finding
from ledger.operations.verify_commits import Brought, End


class Verified(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The books up to a commit, verified whole, or in the parts that are done."""

    end: End
    """Up to which commit, and its seal, by which the books are known again."""
    brought: Brought
    """How much the commits brought that were looked at."""
    stretch: int
    """How many positions one part looks at."""
    slices: int
    """Into how many parts the users are divided."""
    reads_again: bool
    """Whether the documents were read again, too."""
    is_whole: bool = False
    """Whether all parts are done, and nothing was found."""
    done: frozenset[str] = frozenset()
    """Which parts are done, while not all are."""
    findings: tuple[Finding, ...] = ()
    """What they found."""


class UnusableState(Exception):
    """The file cannot be used: the text says why and what to do, without the path."""


def read_verified(path: Path) -> Verified | None:
    """What the file says; ``None`` when there is none. Raises ``UnusableState``."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Verified)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnusableState(f"cannot be read: {error.strerror}") from None
    except msgspec.DecodeError:
        raise UnusableState(
            "was not written by this version: give another name, or say --whole"
        ) from None


def write_verified(path: Path, verified: Verified | None) -> None:
    """Replace the file as a whole, or remove it; raises ``UnusableState``."""
    try:
        if verified is None:
            path.unlink(missing_ok=True)
            return
        beside = path.with_name(path.name + ".new")
        with beside.open("wb") as opened:
            opened.write(msgspec.json.encode(verified))
            opened.flush()
            os.fsync(opened.fileno())
        beside.replace(path)
    except OSError as error:
        raise UnusableState(f"cannot be written: {error.strerror}") from None
