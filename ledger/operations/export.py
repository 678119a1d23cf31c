"""``ledger export``: the postings of one snapshot, and the balances that they make, as files.

First the cut is fixed and put on disk: the balance of every account (``ledger.operations.cut``).
Then the postings follow, in parts. What was interrupted goes on from the last whole part with the
same cut, and ends with the same bytes as if nothing had happened, whatever was posted meanwhile.
At last comes the manifest, so an export without one is not whole.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path

import msgspec

from ledger.account import USER
from ledger.database import Connection
from ledger.lines import json_line
from ledger.operations import cut, manifest
from ledger.operations.cut import EXACT, Held
from ledger.operations.export_state import CUT, ExportRefused, Part, State, Sum, find
from ledger.operations.exported import BEFORE_ALL, Postings, postings_after
from ledger.operations.formats import FORMATS, PIECE_ROWS, Shape
from ledger.operations.manifest import Manifest, NewFile, Total, Wanted

Report = Callable[[int, int], None]
"""Is told how many postings are written, of how many."""


async def export(
    connection: Connection,
    directory: Path,
    wanted: Wanted,
    report: Report = lambda _done, _of: None,
) -> Manifest:
    """Write what is ``wanted`` into ``directory``, or go on with it; the manifest when it is whole.

    A role that may read is enough. Raises ``ExportRefused``, and leaves alone what is there, when
    the directory holds something else or a whole export. The manifest says whether the postings
    agree with the balances; the export is written all the same.
    """
    with _alone_in(directory):
        state = find(directory, wanted)
        async with cut.one_snapshot(connection):
            if state is None:
                state = await _begin(connection, directory, wanted)
            elif not await cut.has_snapshot(connection, state.snapshot):
                raise ExportRefused(
                    f"{directory} was begun from other books, or from what a restore undid: "
                    "choose another directory."
                )
            report(state.done(), state.expected())
            state = await _write_parts(connection, directory, state, report)
        return _finish(directory, state)


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ExportRefused(f"Another export into {directory} is running: wait for it.") from None
    try:
        yield
    finally:
        os.close(descriptor)


async def _begin(connection: Connection, directory: Path, wanted: Wanted) -> State:
    snapshot = await cut.get_snapshot(connection)
    first_day, last_day = await cut.get_days(connection, wanted)
    if wanted.start is not None:
        first_day = wanted.start[:10]
    first_day = first_day or snapshot.taken_at[:10]
    totals: dict[str, Total] = {}
    scale = whole_digits = 0
    with NewFile(directory / CUT) as file:
        count = 0
        async for held in cut.list_held(connection, wanted):
            file.write(json_line(msgspec.structs.asdict(held)) + b"\n")
            count += 1
            _add(totals.setdefault(held.currency, Total(held.currency)), held)
            for amount in (held.closing_debits, held.closing_credits):
                whole, _, decimals = amount.partition(".")
                scale, whole_digits = max(scale, len(decimals)), max(whole_digits, len(whole))
        kept = file.keep(count)
    shape = Shape(
        amounts=FORMATS[wanted.format].amounts(scale, whole_digits),
        currencies=sorted(totals),
        first_day=date.fromisoformat(first_day),
        last_day=date.fromisoformat(last_day or first_day),
    )
    state = State(wanted, snapshot, shape, kept, [totals[c] for c in shape.currencies], [])
    manifest.write_json(directory / manifest.STATE, state)
    return state


def _add(total: Total, held: Held) -> None:
    if held.account.startswith(USER.prefix):
        total.books_postings += held.closing_version - held.opening_version
    total.books_debits = _plus(total.books_debits, _less(held.closing_debits, held.opening_debits))
    total.books_credits = _plus(
        total.books_credits, _less(held.closing_credits, held.opening_credits)
    )


def _plus(one: str, other: Decimal) -> str:
    return f"{EXACT.add(Decimal(one), other):f}"


def _less(one: str, other: str) -> Decimal:
    return EXACT.subtract(Decimal(one), Decimal(other))


async def _write_parts(
    connection: Connection, directory: Path, state: State, report: Report
) -> State:
    held = cut.read_held(directory / CUT)
    after = state.parts[-1].last if state.parts else BEFORE_ALL
    async with postings_after(connection, state.wanted, after, held) as postings:
        # The first part is there even if it is empty: it holds the names of the columns.
        while not state.parts or await postings.has_more():
            part = await _write_part(directory, state, postings, report)
            state = msgspec.structs.replace(state, parts=[*state.parts, part])
            manifest.write_json(directory / manifest.STATE, state)
    return state


async def _write_part(directory: Path, state: State, postings: Postings, report: Report) -> Part:
    form, done, expected = FORMATS[state.wanted.format], state.done(), state.expected()
    rows, last, sums = 0, BEFORE_ALL, dict[str, Sum]()
    with NewFile(directory / f"postings-{len(state.parts) + 1:06d}.{form.suffix}") as file:
        with closing(form.postings(file, state.shape)) as sheet:
            while piece := await postings.take(min(PIECE_ROWS, state.wanted.part_rows - rows)):
                sheet.write(piece)
                for posting in piece:
                    total = sums.setdefault(posting.currency, Sum())
                    total.postings += 1
                    total.amount = EXACT.add(total.amount, Decimal(posting.amount))
                rows, last = rows + len(piece), piece[-1][:3]
                report(done + rows, expected)
        return Part(file.keep(rows), last, sums)


def _finish(directory: Path, state: State) -> Manifest:
    form = FORMATS[state.wanted.format]
    parts = [part.file for part in state.parts]
    files = []
    for rest in form.rest(
        lambda: cut.read_held(directory / CUT),
        state.cut.rows,
        [file.name for file in parts],
        state.shape,
    ):
        with NewFile(directory / rest.name) as file:
            rest.pieces(file)
            files.append(file.keep(rest.rows))
    totals = {total.currency: total for total in state.totals}
    for part in state.parts:
        for currency, written in part.sums.items():
            total = totals.setdefault(currency, Total(currency))
            total.postings += written.postings
            # Each posting is both a debit and a credit of its amount.
            total.debits = total.credits = _plus(total.debits, written.amount)
    whole = Manifest(
        wanted=state.wanted,
        snapshot=state.snapshot,
        amounts=state.shape.amounts,
        postings=state.done(),
        balances=state.cut.rows,
        agrees=all(total.agrees() for total in totals.values()),
        totals=list(totals.values()),
        files=[state.cut, *parts, *files],
    )
    manifest.write_json(directory / manifest.MANIFEST, whole)
    (directory / manifest.STATE).unlink()
    return whole
