"""``ledger second-opinion``: the books as programs add them up that are not ours.

The journal of one snapshot is read by beancount's own loader, and by hledger where it is installed.
Each checks every balance assertion by itself; then every balance that it came to is held against
the books. Neither reads in constant memory: for large books, ask for one period after another.
"""

import csv
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from decimal import Decimal, localcontext
from pathlib import Path
from typing import NamedTuple

import msgspec

from ledger.database import Connection
from ledger.operations.cut import EXACT, Held, read_held
from ledger.operations.export import Report, export
from ledger.operations.export_state import CUT
from ledger.operations.formats import FORMATS
from ledger.operations.journal_names import account_name, account_of, commodity_name, currency_of
from ledger.operations.manifest import Manifest, Wanted

Balances = dict[tuple[str, str], Decimal]
"""By account and currency, as the journal names them; debits are positive."""


class Difference(NamedTuple):
    """One thing in which the books and another program do not agree."""

    program: str
    account: str
    currency: str | None
    books: str | None
    found: str | None


class Opinion(NamedTuple):
    """What one program says."""

    program: str
    balances: int | None
    """How many it came to; ``None`` when it is not installed."""
    differences: list[Difference]


async def second_opinion(
    connection: Connection, wanted: Wanted, report: Report = lambda _done, _of: None
) -> list[Opinion]:
    """What beancount and hledger say of the books in the period of ``wanted``."""
    opinions = []
    for program, read in _PROGRAMS.items():
        if program == "hledger" and shutil.which(program) is None:
            opinions.append(Opinion(program, None, []))
            continue
        with tempfile.TemporaryDirectory(prefix="ledger-second-opinion-") as name:
            asked = msgspec.structs.replace(wanted, format=program)
            written = await export(connection, Path(name), asked, report)
            found, complaints = read(Path(name) / str(FORMATS[program].main))
            differences = [
                *_totals(program, written),
                *_compare(program, read_held(Path(name) / CUT), found),
            ]
        named = {difference.account for difference in differences}
        # A failed assertion on an account that is named already would be the same thing twice.
        differences += [
            Difference(program, account, None, None, complaint)
            for account, complaint in complaints
            if account not in named
        ]
        opinions.append(Opinion(program, written.balances, differences))
    return opinions


def _totals(program: str, written: Manifest) -> Iterator[Difference]:
    for total in written.totals:
        if not total.agrees():
            books = f"{total.books_postings}: {total.books_debits} / {total.books_credits}"
            found = f"{total.postings}: {total.debits} / {total.credits}"
            yield Difference(program, "all postings", total.currency, books, found)


def _compare(program: str, held: Iterator[Held], found: Balances) -> Iterator[Difference]:
    """Every account that is not the same on both sides; takes from ``found`` what it has seen."""
    for one in held:
        name = (account_name(one.account), commodity_name(one.currency))
        balance = found.pop(name, Decimal(0))
        if balance != one.closing():
            yield Difference(
                program, one.account, one.currency, f"{one.closing():f}", f"{balance:f}"
            )
    for (account, commodity), balance in found.items():
        if balance:
            currency = currency_of(commodity)
            yield Difference(program, account_of(account), currency, None, f"{balance:f}")


Complaint = tuple[str, str]
"""An account, or nothing, and what the program says."""


def _read_by_beancount(journal: Path) -> tuple[Balances, list[Complaint]]:
    from beancount import loader
    from beancount.core.data import Transaction
    from beancount.core.inventory import Inventory

    # Its sums are rounded to as many digits as the context says.
    with localcontext(EXACT):
        entries, errors, _ = loader.load_file(str(journal))
        inventories: dict[str, Inventory] = {}
        for entry in entries:
            if isinstance(entry, Transaction):
                for posting in entry.postings:
                    inventories.setdefault(posting.account, Inventory()).add_position(posting)
    balances = {
        (account, position.units.currency): position.units.number
        for account, inventory in inventories.items()
        for position in inventory
    }
    complaints = [
        (account_of(getattr(error.entry, "account", None) or ""), str(error.message))
        for error in errors
    ]
    return balances, complaints


def _read_by_hledger(journal: Path) -> tuple[Balances, list[Complaint]]:
    # Not with `--strict`, whose time grows with accounts times postings.
    done = _hledger(journal)
    complaints: list[Complaint] = []
    if done.returncode:
        complaints = [("", done.stderr.strip())]
        # It ends at the first assertion that fails: without them, every difference can be named.
        done = _hledger(journal, "--ignore-assertions")
    balances = {
        (row["account"], commodity_name(row["commodity"])): Decimal(row["balance"])
        for row in csv.DictReader(done.stdout.splitlines())
    }
    return balances, complaints


def _hledger(journal: Path, *how: str) -> "subprocess.CompletedProcess[str]":
    asked = ["--flat", "--no-elide", "--no-total", "--empty", "--layout=bare", "-O", "csv"]
    return subprocess.run(
        ["hledger", "-f", str(journal), "balance", *how, *asked],  # noqa: S607 - where it is is known
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )


_PROGRAMS = {"beancount": _read_by_beancount, "hledger": _read_by_hledger}
