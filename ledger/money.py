"""Currencies and exact amounts. No float, ever.

An amount is a ``decimal.Decimal`` in Python, ``numeric`` in SQL and a decimal string on wires.
"""

import re
from collections.abc import Iterator
from decimal import Context, Decimal, Inexact
from typing import NamedTuple

import iso4217

from ledger.errors import InvalidAmount

DIGITS_MAX = 30
"""How many digits an amount may have, before and after its point together.

More than any currency needs, and small enough that neither exponents nor sums can grow a row.
"""

CURRENCY_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,19}", re.ASCII)
"""What a currency's code looks like; the whole of it must match."""


class Currency(NamedTuple):
    """A code with a fixed scale: ISO 4217, or a registered unit such as ``POINTS``."""

    code: str
    scale: int
    """How many decimals an amount of it may have."""
    name: str


UNITS = (Currency("POINTS", 0, "Points"), Currency("COINS", 0, "Coins"))
"""What rewards are counted in that no country issues."""


def standard_currencies() -> Iterator[Currency]:
    """Every currency that the books know from the start.

    ISO 4217's list one, as the package ``iso4217`` carries it (with the date of the publication
    in its version), and ``UNITS``. Codes without a scale (gold, testing, no currency) are left
    out: an amount of them would have no smallest unit.
    """
    for currency in iso4217.Currency:
        if currency.exponent is not None:
            yield Currency(currency.code, currency.exponent, currency.currency_name)
    yield from UNITS


_EXACT = Context(prec=DIGITS_MAX, traps=[Inexact])
"""Calculates to so many digits or not at all; in time linear in what was sent."""


def exact(value: Decimal) -> Decimal:
    """``value`` without trailing zeros or exponent, when it is an amount that can be booked.

    Zero is allowed: a reward of nothing is recorded. Raises ``InvalidAmount`` for a negative
    value, NaN, an infinity, or more than ``DIGITS_MAX`` digits.
    """
    try:
        amount = _EXACT.normalize(value)
    except Inexact:
        raise InvalidAmount from None
    _, digits, exponent = amount.as_tuple()
    if not isinstance(exponent, int) or amount < 0:
        raise InvalidAmount
    if not amount:
        return Decimal(0)
    # Bounded before it is written out: 1E+400 must not become four hundred digits.
    if max(len(digits), len(digits) + exponent, -exponent) > DIGITS_MAX:
        raise InvalidAmount
    return amount if exponent <= 0 else _EXACT.quantize(amount, Decimal(1))


def plain(numeric: str) -> str:
    """Postgres's text of a numeric, as it goes on a wire: a whole value without a point.

    Amounts are kept with all decimals of their currency, so ``12.50`` stays ``12.50``, while
    ``400.00`` becomes ``400`` and zero is always ``0``.
    """
    whole, _, fraction = numeric.partition(".")
    return numeric if fraction.strip("0") else whole
