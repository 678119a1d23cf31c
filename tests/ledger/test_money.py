"""Exact amounts and the currencies that they are counted in."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import InvalidAmount
from ledger.money import CURRENCY_CODE, DIGITS_MAX, exact, plain, standard_currencies

CURRENCIES = {currency.code: currency for currency in standard_currencies()}


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("400", "400"),
        ("400.00", "400"),
        ("12.50", "12.5"),
        ("0.10", "0.1"),
        ("4E+2", "400"),
        ("4.00E+2", "400"),
        ("40000E-2", "400"),
        ("1E-30", f"0.{'0' * 29}1"),
        ("1E+29", f"1{'0' * 29}"),
        ("0", "0"),
        ("0.000", "0"),
        ("0E+400", "0"),
        ("0E-400", "0"),
        ("0E+999999999999", "0"),
        ("0E-999999999999", "0"),
        ("-0", "0"),
        ("-0.00", "0"),
        ("9" * 30, "9" * 30),
        (f"{'9' * 15}.{'9' * 15}", f"{'9' * 15}.{'9' * 15}"),
        (f"1.5{'0' * 60_000}", "1.5"),
    ],
)
def test_an_amount_is_kept_exactly_and_written_in_one_way(told: str, kept: str) -> None:
    amount = exact(Decimal(told))
    assert f"{amount:f}" == kept
    assert -DIGITS_MAX <= int(amount.as_tuple().exponent) <= 0


@pytest.mark.parametrize(
    "told",
    [
        "-1",
        "-0.01",
        "NaN",
        "sNaN",
        "-NaN",
        "Infinity",
        "-Infinity",
        "9" * 31,
        "1E+30",
        "1E+400",
        "1E+999999",
        "1E+999999999999",
        "1E-999999999999",
        "1E-31",
        "1E-400",
        f"1.{'0' * 30}1",
        f"{'9' * 16}.{'9' * 15}",
        "9" * 60_000,
        f"1.{'9' * 60_000}",
    ],
)
def test_what_cannot_be_booked_is_no_amount(told: str) -> None:
    with pytest.raises(InvalidAmount):
        exact(Decimal(told))


@given(st.integers(0, 10**30 - 1), st.integers(0, 30))
def test_every_amount_of_so_many_digits_keeps_its_value(digits: int, decimals: int) -> None:
    told = Decimal((0, tuple(map(int, str(digits))), -decimals))
    kept = exact(told)
    assert kept == told
    assert exact(kept).as_tuple() == kept.as_tuple()
    written = f"{kept:f}"
    assert re.fullmatch(r"0|[1-9][0-9]*(\.[0-9]*[1-9])?|0\.[0-9]*[1-9]", written)
    assert len(written) <= DIGITS_MAX + 2


@given(st.decimals())
def test_every_decimal_keeps_its_value_or_is_refused(told: Decimal) -> None:
    try:
        kept = exact(told)
    except InvalidAmount:
        assert not is_bookable(told)
    else:
        assert is_bookable(told)
        assert kept == told


def is_bookable(told: Decimal) -> bool:
    """Whether ``told`` has few enough digits on both sides of its point, written out."""
    if not told.is_finite() or told < 0:
        return False
    if told and not -100 < told.adjusted() < 100:
        return False
    whole, _, fraction = f"{told:f}".partition(".")
    written = whole.lstrip("0-") + fraction.rstrip("0")
    return len(written) <= DIGITS_MAX


@pytest.mark.parametrize(
    ("numeric", "wire"),
    [
        ("400.00", "400"),
        ("12.50", "12.50"),
        ("0.00", "0"),
        ("0", "0"),
        ("400", "400"),
        ("100", "100"),
        ("0.001", "0.001"),
        ("-5.00", "-5"),
        ("-5.10", "-5.10"),
    ],
)
def test_a_whole_value_goes_on_the_wire_without_a_point(numeric: str, wire: str) -> None:
    assert plain(numeric) == wire


@pytest.mark.parametrize(
    ("code", "scale"),
    [("USD", 2), ("EUR", 2), ("JPY", 0), ("KWD", 3), ("CLF", 4), ("POINTS", 0), ("COINS", 0)],
)
def test_a_currency_has_the_scale_that_its_standard_gives(code: str, scale: int) -> None:
    assert CURRENCIES[code].scale == scale


@pytest.mark.parametrize("code", ["XAU", "XTS", "XXX"])
def test_a_code_without_a_smallest_unit_is_no_currency(code: str) -> None:
    assert code not in CURRENCIES


def test_every_currency_stands_once_and_fits_the_books() -> None:
    currencies = list(standard_currencies())
    assert len(currencies) == len(CURRENCIES) > 150
    for currency in currencies:
        assert CURRENCY_CODE.fullmatch(currency.code)
        assert 0 <= currency.scale <= 18
        assert currency.name
