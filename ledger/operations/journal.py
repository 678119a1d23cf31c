"""The books as a journal of plain text, for beancount and for hledger.

Every account is declared, every posting is one transaction, and at the end stands a balance
assertion for every account in each of its currencies, which whoever reads it then holds against
the sum of what he read. Debits are positive. Nothing that came from outside is written as it is:
names are escaped, and so is whatever stands in a string or a tag.
"""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Protocol
from urllib.parse import quote

from ledger.operations.cut import Held
from ledger.operations.exported import ExportedPosting
from ledger.operations.journal_names import OPENING, account_name, commodity_name


class Dialect(Protocol):
    """How one of the programs wants it said."""

    suffix: str
    head: str
    """What every file begins with."""

    def include(self, name: str) -> str:
        """Read the file ``name``, which lies beside this one, too."""
        ...

    def commodity(self, currency: str, day: date) -> str:
        """Amounts may be in ``currency``."""
        ...

    def account(self, name: str, of: str, currencies: Sequence[str], day: date) -> str:
        """There is ``name``, for the account ``of``, from ``day`` on."""
        ...

    def posting(self, posting: ExportedPosting) -> str:
        """The transaction of ``posting``."""
        ...

    def opening(self, name: str, currency: str, amount: Decimal, day: date) -> str:
        """A transaction that brings ``name`` what it held before."""
        ...

    def assertion(self, name: str, currency: str, amount: Decimal, last_day: date) -> str:
        """After ``last_day``, ``name`` holds exactly ``amount``."""
        ...


class Beancount:
    """beancount 2 and 3."""

    suffix = "beancount"
    head = ""

    def include(self, name: str) -> str:
        """See ``Dialect``."""
        return f'include "{name}"\n'

    def commodity(self, currency: str, day: date) -> str:
        """With our own code, where the name is another."""
        name = commodity_name(currency)
        told = "" if name == currency else f"  currency: {_string(currency)}\n"
        return f"{day} commodity {name}\n{told}"

    def account(self, name: str, of: str, currencies: Sequence[str], day: date) -> str:
        """In its currencies only."""
        names = ",".join(map(commodity_name, currencies))
        return f"{day} open {name} {names}\n  account: {_string(of)}\n"

    def posting(self, posting: ExportedPosting) -> str:
        """With what leads back to the row of the books."""
        name = commodity_name(posting.currency)
        sources = "".join(f"  {key}: {_string(value)}\n" for key, value in _sources(posting))
        return (
            f'{posting.posted_at[:10]} * "{_kind(posting)}"\n'
            f'{sources}  version: "{posting.version}"\n  posted-at: "{posting.posted_at}"\n'
            f"  {account_name(posting.debit_account)}  {posting.amount} {name}\n"
            f"  {account_name(posting.credit_account)}  -{posting.amount} {name}\n\n"
        )

    def opening(self, name: str, currency: str, amount: Decimal, day: date) -> str:
        """See ``Dialect``."""
        commodity = commodity_name(currency)
        return (
            f'{day} * "opening"\n  {name}  {amount:f} {commodity}\n'
            f"  {OPENING}  {-amount:f} {commodity}\n\n"
        )

    def assertion(self, name: str, currency: str, amount: Decimal, last_day: date) -> str:
        """At the beginning of the next day; without a tolerance, a hundredth too much would do."""
        day = last_day + timedelta(days=1)
        return f"{day} balance {name}  {amount:f} ~ 0 {commodity_name(currency)}\n"


class Hledger:
    """hledger 1.25 and newer."""

    suffix = "journal"
    # Else 1.234 could be read as a thousand and more.
    head = "decimal-mark .\n\n"

    def include(self, name: str) -> str:
        """See ``Dialect``."""
        return f"include {name}\n"

    def commodity(self, currency: str, day: date) -> str:  # noqa: ARG002 - not dated here
        """In quotes, as a code may hold digits."""
        return f'commodity "{currency}"\n'

    def account(
        self,
        name: str,
        of: str,
        currencies: Sequence[str],  # noqa: ARG002 - hledger has no such rule
        day: date,  # noqa: ARG002
    ) -> str:
        """See ``Dialect``."""
        return f"account {name}  ; account:{_tag(of)}\n"

    def posting(self, posting: ExportedPosting) -> str:
        """With what leads back to the row of the books."""
        sources = "".join(f"{key}:{_tag(value)}, " for key, value in _sources(posting))
        return (
            f"{posting.posted_at[:10]} * {_kind(posting)}"
            f"  ; {sources}version:{posting.version}, posted-at:{posting.posted_at}\n"
            f'    {account_name(posting.debit_account)}  {posting.amount} "{posting.currency}"\n'
            f'    {account_name(posting.credit_account)}  -{posting.amount} "{posting.currency}"\n'
            "\n"
        )

    def opening(self, name: str, currency: str, amount: Decimal, day: date) -> str:
        """See ``Dialect``."""
        return (
            f'{day} * opening\n    {name}  {amount:f} "{currency}"\n'
            f'    {OPENING}  {-amount:f} "{currency}"\n\n'
        )

    def assertion(self, name: str, currency: str, amount: Decimal, last_day: date) -> str:
        """A transaction of nothing, after all others of that day."""
        return f'{last_day} * balance\n    {name}  0 "{currency}" = {amount:f} "{currency}"\n\n'


def _kind(posting: ExportedPosting) -> str:
    if posting.reward_id is not None:
        return "reward"
    return "adjustment" if posting.reversed_reward_id is None else "reversal"


def _sources(posting: ExportedPosting) -> Iterator[tuple[str, str]]:
    """Under which names what is posted stands in the books."""
    if posting.reward_id is not None:
        yield "reward", posting.reward_id
    if posting.correction_key is not None:
        yield "correction", posting.correction_key
    if posting.reversed_reward_id is not None:
        yield "reverses", posting.reversed_reward_id


_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def _string(text: str) -> str:
    return f'"{text.translate(_ESCAPES)}"'


def _tag(text: str) -> str:
    """A tag's value would end at a comma or with the line: ``urllib.parse.unquote`` reads it."""
    return quote(text, safe="")


def declarations(
    dialect: Dialect, held: Iterator[Held], currencies: Sequence[str], first_day: date
) -> Iterator[str]:
    """Every currency, every account, and what it held before the first day."""
    yield dialect.head
    for currency in currencies:
        yield dialect.commodity(currency, first_day)
    if currencies:
        yield dialect.account(OPENING, "opening", currencies, first_day)
    for account, in_currencies in groupby(held, lambda one: one.account):
        name, all_of_it = account_name(account), list(in_currencies)
        yield dialect.account(name, account, [one.currency for one in all_of_it], first_day)
        for one in all_of_it:
            if one.opening():
                yield dialect.opening(name, one.currency, one.opening(), first_day)


def assertions(
    dialect: Dialect, held: Iterator[Held], currencies: Sequence[str], last_day: date
) -> Iterator[str]:
    """What every account holds in each of its currencies after the last day."""
    yield dialect.head
    for currency in currencies:
        yield dialect.assertion(OPENING, currency, Decimal(0), last_day)
    for one in held:
        yield dialect.assertion(account_name(one.account), one.currency, one.closing(), last_day)
