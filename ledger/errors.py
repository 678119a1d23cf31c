"""What can go wrong in the books, sorted by what the receiver should do.

::

    LedgerError
    ├── Refused                  asking again will not help
    │   ├── InvalidArgument      the question is malformed; carries the field
    │   ├── InvalidAmount        not an exact amount that can be booked
    │   ├── UnknownCurrency      nobody registered it
    │   ├── IdempotencyConflict  the same key, another fingerprint
    │   ├── RewardNotFound       no such reward
    │   ├── NothingToReverse     the reward posted nothing, or all of it was taken back
    │   ├── TooMuchToReverse     more than is left of it; carries what is left
    │   ├── BalanceTooLow        the user's balance would go below zero; carries it
    │   ├── ProposalNotFound     no such proposal, or it was decided
    │   ├── SamePerson           who proposed it may not approve it
    │   ├── Unauthenticated      nobody knows who asks
    │   ├── PermissionDenied     who asks is known, and may not; carries the scope
    │   ├── CorrectionsOff       who serves here was not set up to correct
    │   └── BrokenRule           a rule of the database refused the rows
    └── Unavailable              asking again may help
        ├── DatabaseUnavailable  Postgres cannot be asked, or did not answer
        ├── DeadlineExceeded     no answer within the time that was given
        ├── Overloaded           too much is waiting already
        └── FellBehind           what came was not taken

No text of an exception reaches a caller: every edge answers from its own table.
"""

from traceback import walk_tb


def where(error: BaseException) -> str:
    """The kind of ``error`` and the way to its place, for a log.

    Never its text, which may hold what somebody sent.
    """
    places = [f"{frame.f_code.co_qualname}:{line}" for frame, line in walk_tb(error.__traceback__)]
    return f"{type(error).__qualname__} at {' > '.join(places)}"


class LedgerError(Exception):
    """The root of everything that the books raise."""


class Refused(LedgerError):
    """Asking again will not help."""


class InvalidArgument(Refused):
    """The question is malformed: ``field`` names where, ``reason`` says why; both constants."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


class InvalidAmount(Refused):
    """Not an exact amount of its currency that can be booked."""


class UnknownCurrency(Refused):
    """Nobody registered the currency."""


class IdempotencyConflict(Refused):
    """The idempotency key is taken by a fact with another fingerprint."""


class RewardNotFound(Refused):
    """No reward has this rewardId."""


class NothingToReverse(Refused):
    """The reward posted nothing, or all that it credited was taken back before."""


class TooMuchToReverse(Refused):
    """More than is left of what the reward credited: ``left``, a decimal string."""

    def __init__(self, left: str) -> None:
        super().__init__(left)
        self.left = left


class BalanceTooLow(Refused):
    """What is taken would bring the user's balance below zero: to ``balance``, a decimal string."""

    def __init__(self, balance: str) -> None:
        super().__init__(balance)
        self.balance = balance


class ProposalNotFound(Refused):
    """No proposal has this key, or it was decided before."""


class SamePerson(Refused):
    """Who proposed an adjustment may not be the one who approves it."""


class Unauthenticated(Refused):
    """Nobody knows who asks: no token and no certificate vouches for them."""


class PermissionDenied(Refused):
    """Who asks is known, and has not the scope that is needed: ``scope`` is its name."""

    def __init__(self, scope: str) -> None:
        super().__init__(scope)
        self.scope = scope


class CorrectionsOff(Refused):
    """The service was not set up to correct anything."""


class BrokenRule(Refused):
    """A rule of the database refused the rows: ``rule`` is its constraint's name."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


class Unavailable(LedgerError):
    """Asking again may help."""


class DatabaseUnavailable(Unavailable):
    """Postgres cannot be asked, or did not answer; what it did is not known."""


class DeadlineExceeded(Unavailable):
    """No answer came within the time that was given; what was asked may still happen."""


class Overloaded(Unavailable):
    """Too much is waiting already; nothing was done."""


class FellBehind(Unavailable):
    """Who watches did not take what came, and cannot be waited for; it can go on from its token."""
