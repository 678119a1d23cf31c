"""Why a delivery is not believed, or not readable.

::

    IngressError
    ├── Refused                   sending the same bytes again will not help
    │   ├── TooLarge              the body is over the limit
    │   ├── NotAJsonContentType   the body says that it is something other than JSON
    │   ├── AddressNotAllowed     the speaker's address is not in the list
    │   ├── NotBelieved           no token vouches for the delivery
    │   ├── TooManyFailures       nor for too many others from its address
    │   ├── NotCanonical          no JSON.stringify text exists for these bytes
    │   ├── NotJson               believed bytes that are not JSON
    │   └── NotAReward            believed JSON that is not a reward
    └── Unavailable               sending the same bytes again may help
        ├── Incomplete            fewer bytes arrived than were announced
        └── NotCheckedInTime      after too many failures, its turn to be checked did not come

Each leaf has its HTTP status in the one table in ``ingress.app``. None of them carries anything
that the sender wrote: an error's text may reach a log, and what was sent may hold coupon codes
and names.
"""


class IngressError(Exception):
    """The root of everything that the ingress raises itself."""


class Refused(IngressError):
    """Sending the same bytes again will not help."""


class TooLarge(Refused):
    """The body is over the limit."""


class NotAJsonContentType(Refused):
    """The body says that it is something other than JSON in UTF-8."""


class NotBelieved(Refused):
    """No token vouches for the delivery."""


class AddressNotAllowed(Refused):
    """The speaker's address is not in the list, and the list is enforced."""


class TooManyFailures(Refused):
    """No token vouches for it, in either form, nor for too many others from its address.

    ``wait_seconds`` says after how long the address may fail again.
    """

    def __init__(self, wait_seconds: int) -> None:
        super().__init__(wait_seconds)
        self.wait_seconds = wait_seconds


class NotCanonical(Refused):
    """No JSON.stringify text exists for these bytes."""


class NotJson(Refused):
    """Believed bytes that are not JSON."""


class NotAReward(Refused):
    """Believed JSON that is not a reward: ``field`` names where, ``reason`` says why.

    Both are constants of ours, never the sender's data.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


class Unavailable(IngressError):
    """Sending the same bytes again may help."""


class Incomplete(Unavailable):
    """Fewer bytes arrived than were announced."""


class NotCheckedInTime(Unavailable):
    """Too many from its address were not believed, and its turn to be checked did not come."""
