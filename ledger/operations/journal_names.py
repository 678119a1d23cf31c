"""Our accounts and currencies ↔ names that beancount and hledger read.

Both ways without loss: two accounts never share a name, and a name tells its account. Whatever an
account is called, its name is letters, digits and hyphens, so it cannot end a line or a string.
"""

import re
from functools import lru_cache

from ledger.account import ADJUSTMENT, CAMPAIGN, USER

OPENING = "Equity:Opening"
"""Where a period's opening balances come from; it ends as it began, with nothing."""

_ROOTS = {
    USER.prefix: "Liabilities:Users:",
    CAMPAIGN.prefix: "Expenses:Campaigns:",
    ADJUSTMENT.prefix: "Expenses:Adjustments:",
}
_OTHER_ROOT = "Expenses:Other:"
"""Below it stands the whole account, its kind included."""

# X begins an escape, so it is escaped itself. A name must begin with a capital or a digit.
_ESCAPED = re.compile(r"[^A-WYZa-z0-9-]")
_ESCAPE = re.compile(r"(?:X[0-9A-F]{2})+")
_PREFIX = "X-"


@lru_cache(maxsize=10_000)
def account_name(account: str) -> str:
    """The name of ``account``: ``user:ann`` is ``Liabilities:Users:X-ann``."""
    for prefix, root in _ROOTS.items():
        if account.startswith(prefix):
            return root + _escape(account.removeprefix(prefix))
    return _OTHER_ROOT + _escape(account)


def account_of(name: str) -> str:
    """The account that ``name`` was made of; a name that is not ours is told as it is."""
    for prefix, root in _ROOTS.items():
        if name.startswith(root):
            return prefix + _unescape(name.removeprefix(root))
    return _unescape(name.removeprefix(_OTHER_ROOT)) if name.startswith(_OTHER_ROOT) else name


def _escape(text: str) -> str:
    escaped = _ESCAPED.sub(lambda found: "X" + found[0].encode().hex("X").upper(), text)
    return escaped if re.match(r"[A-Z0-9]", escaped) else _PREFIX + escaped


def _unescape(text: str) -> str:
    return _ESCAPE.sub(
        lambda found: bytes.fromhex(found[0].replace("X", "")).decode(), text.removeprefix(_PREFIX)
    )


_SUFFIX = ".X"
"""No code of ours holds a point."""


def commodity_name(currency: str) -> str:
    """The commodity of ``currency``: itself, unless beancount would take it for something else."""
    is_word = currency in {"TRUE", "FALSE", "NULL"}
    is_cut = len(currency) == 1 or currency.endswith("_")
    return currency + _SUFFIX if is_word or is_cut else currency


def currency_of(commodity: str) -> str:
    """The currency that ``commodity`` was made of."""
    return commodity.removesuffix(_SUFFIX)
