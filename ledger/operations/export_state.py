"""How far an export has come, kept beside its files, so that another process can go on with it."""

from decimal import Decimal
from pathlib import Path

import msgspec

from ledger.operations import manifest
from ledger.operations.exported import Key
from ledger.operations.formats import Shape
from ledger.operations.manifest import File, Snapshot, Total, Wanted

CUT = "balances.ndjson"
"""It stays in the export, whatever the format: what the books say that must come out."""


class ExportRefused(Exception):
    """There is nothing that can be written there; the text says why, and what to do."""


class Sum(msgspec.Struct):
    """What of one currency stands in a part."""

    postings: int = 0
    amount: Decimal = Decimal(0)


class Part(msgspec.Struct, frozen=True):
    """A whole file with postings."""

    file: File
    last: Key
    """The place of its last posting."""
    sums: dict[str, Sum]
    """By currency."""


class State(msgspec.Struct, frozen=True):
    """How far an export has come that is under way."""

    wanted: Wanted
    snapshot: Snapshot
    shape: Shape
    cut: File
    totals: list[Total]
    """What the balances say must come out."""
    parts: list[Part]

    def done(self) -> int:
        """How many postings are in whole parts."""
        return sum(part.file.rows for part in self.parts)

    def expected(self) -> int:
        """How many there are in all."""
        return sum(total.books_postings for total in self.totals)


def find(directory: Path, wanted: Wanted) -> State | None:
    """The state of the export that was begun in ``directory``; ``None`` if there is none."""
    names = {path.name for path in directory.iterdir()}
    if manifest.MANIFEST in names:
        raise ExportRefused(f"{directory} holds a whole export already: choose another directory.")
    if manifest.STATE not in names:
        if any(name != CUT and not name.endswith(manifest.WRITING) for name in names):
            raise ExportRefused(f"{directory} holds other files: choose a new or empty directory.")
        return None
    try:
        state = msgspec.json.decode((directory / manifest.STATE).read_bytes(), type=State)
    except msgspec.DecodeError:
        raise ExportRefused(_SPOILT.format(directory / manifest.STATE)) from None
    if state.wanted != wanted:
        was = " ".join(f"{k}={v}" for k, v in msgspec.to_builtins(state.wanted).items())
        raise ExportRefused(
            f"{directory} holds an unfinished export of another kind ({was}): "
            "ask for the same again, or choose another directory."
        )
    for file in (state.cut, *(part.file for part in state.parts)):
        if not manifest.is_as_written(directory, file):
            raise ExportRefused(_SPOILT.format(directory / file.name))
    return state


_SPOILT = "{} is not as it was written: choose another directory and begin again."
