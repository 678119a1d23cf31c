"""What can go wrong with a question, sorted by what the asker should do.

::

    ClientError
    ├── Refused               asking again will not help
    │   ├── InvalidArgument   the question is malformed; carries the field
    │   ├── RewardNotFound    no such reward
    │   ├── NothingToReverse  it posted nothing, or all of it was taken back
    │   ├── TooMuchToReverse  less is left of it; carries what is left
    │   ├── BalanceTooLow     the balance would go below zero; carries what it would be
    │   ├── KeyConflict       the key stands for another correction
    │   ├── CorrectionsOff    the service was not set up to correct
    │   ├── Unauthenticated   the service does not know who asks
    │   ├── PermissionDenied  it knows, and will not tell; carries the scope
    │   └── ServiceFault      a fault of the service
    └── Unavailable           asking again may help; it was asked again a few times already
        ├── Unreachable       nobody answers there, or the connection broke
        ├── BooksUnavailable  the service cannot reach its books
        ├── Overloaded        too much is waiting there already
        ├── FellBehind        what was watched came faster than it was taken
        └── DeadlineExceeded  no answer within the time that was given

A fault of the caller's own code, such as a time without a time zone, is a ``ValueError``.
"""

from decimal import Decimal
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus

DOMAIN = "reward-ledger"


class Told(NamedTuple):
    """What the caller was told instead of an answer."""

    status: grpc.StatusCode
    text: str
    reason: str = ""
    """The service's stable name of the error; empty when something before it answered."""
    field: str = ""
    """Which field of the request is malformed."""
    problem: str = ""
    """What is wrong with that field."""
    scope: str = ""
    """Which scope the caller has not."""
    amount: str = ""
    """What is left of a reward, or what a balance would be."""
    request_id: str = ""
    """What the service's own log calls the call."""
    retry_seconds: float | None = None
    """How long the service asks to wait before it is asked again."""


class ClientError(Exception):
    """The root of everything that a question can be answered with instead of an answer.

    ``status`` is gRPC's; ``reason`` and ``request_id`` are the service's own, and empty when
    something before it answered.
    """

    def __init__(self, told: Told) -> None:
        super().__init__(told)
        self.status = told.status
        self.reason = told.reason
        self.request_id = told.request_id

    def __str__(self) -> str:
        told: Told = self.args[0]
        words = f"{told.reason or told.status.name}: {told.text}"
        if what := f"{told.field} {told.problem}".strip() or told.scope or told.amount:
            words += f": {what}"
        return f"{words} (request {told.request_id})" if told.request_id else words


class Refused(ClientError):
    """Asking again will not help."""


class InvalidArgument(Refused):
    """The question is malformed: ``field`` names where, ``problem`` says why.

    ``field`` is empty when the service could not read the whole message.
    """

    def __init__(self, told: Told) -> None:
        super().__init__(told)
        self.field = told.field
        self.problem = told.problem


class RewardNotFound(Refused):
    """The books do not have the reward."""


class NothingToReverse(Refused):
    """The reward posted nothing, or all that it credited was taken back before."""


class TooMuchToReverse(Refused):
    """Less is left of what the reward credited: ``left``."""

    def __init__(self, told: Told) -> None:
        super().__init__(told)
        self.left = Decimal(told.amount)


class BalanceTooLow(Refused):
    """The user's balance would go below zero, to ``balance``, and that was not allowed."""

    def __init__(self, told: Told) -> None:
        super().__init__(told)
        self.balance = Decimal(told.amount)


class KeyConflict(Refused):
    """The key stands for another correction: of another reward, or of another amount."""


class CorrectionsOff(Refused):
    """The service was not set up to correct anything."""


class Unauthenticated(Refused):
    """The service does not know who asks: the token or the certificate is missing or wrong."""


class PermissionDenied(Refused):
    """The service knows who asks, who has not the scope that is needed: ``scope`` is its name."""

    def __init__(self, told: Told) -> None:
        super().__init__(told)
        self.scope = told.scope


class ServiceFault(Refused):
    """A fault of the service, which the same question would meet again."""


class Unavailable(ClientError):
    """Asking again may help, after ``retry_seconds`` if the service said so."""

    def __init__(self, told: Told) -> None:
        super().__init__(told)
        self.retry_seconds = told.retry_seconds


class Unreachable(Unavailable):
    """Nobody answers there, or the connection broke."""


class BooksUnavailable(Unavailable):
    """The service cannot reach its books."""


class Overloaded(Unavailable):
    """Too much is waiting at the service already."""


class FellBehind(Unavailable):
    """What was watched came faster than it was taken; the last token goes on without a gap."""


class DeadlineExceeded(Unavailable):
    """No answer came within the time that was given."""


REASONS: dict[str, type[ClientError]] = {
    "NOT_A_MESSAGE": InvalidArgument,
    "INVALID_ARGUMENT": InvalidArgument,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "REWARD_NOT_FOUND": RewardNotFound,
    "NOTHING_TO_REVERSE": NothingToReverse,
    "TOO_MUCH_TO_REVERSE": TooMuchToReverse,
    "BALANCE_TOO_LOW": BalanceTooLow,
    "KEY_CONFLICT": KeyConflict,
    "CORRECTIONS_OFF": CorrectionsOff,
    "OVERLOADED": Overloaded,
    "FELL_BEHIND": FellBehind,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "BOOKS_UNAVAILABLE": BooksUnavailable,
    "INTERNAL": ServiceFault,
}
"""What the service itself says."""

STATUSES: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.INTERNAL: ServiceFault,
    grpc.StatusCode.UNKNOWN: ServiceFault,
    grpc.StatusCode.UNAVAILABLE: Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.ABORTED: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
}
"""What is meant by a status without a reason that we know: gRPC or a proxy gave it, or a later
version of the service. RESOURCE_EXHAUSTED is not here: gRPC says it of a message that is too
large, which stays too large."""


def error_of(error: Any) -> ClientError:
    """The error for what gRPC raised, a ``grpc.RpcError`` that is also the call that failed."""
    told = _told(error)
    kind = REASONS.get(told.reason) or STATUSES.get(told.status)
    if kind is None:
        kind = Refused if told.retry_seconds is None else Unavailable
    return kind(told)


def _told(error: Any) -> Told:
    told = Told(error.code(), error.details() or "")
    details = _details(error)
    # A proxy may answer, too, and give its own reasons.
    info = details.get(ErrorInfo)
    if info is None or info.domain != DOMAIN:
        return told
    amount = info.metadata.get("left") or info.metadata.get("balance", "")
    told = told._replace(reason=info.reason, scope=info.metadata.get("scope", ""), amount=amount)
    if BadRequest in details:
        for violation in details[BadRequest].field_violations:
            told = told._replace(field=violation.field, problem=violation.description)
    if RequestInfo in details:
        told = told._replace(request_id=details[RequestInfo].request_id)
    if RetryInfo in details:
        delay = details[RetryInfo].retry_delay
        told = told._replace(retry_seconds=delay.seconds + delay.nanos / 1e9)
    return told


def _details(error: Any) -> dict[type[Any], Any]:
    """The details by their kind, as https://google.aip.dev/193 describes; none if unreadable."""
    details: dict[type[Any], Any] = {}
    try:
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                for packed in RpcStatus.FromString(value).details:
                    for kind in (ErrorInfo, BadRequest, RequestInfo, RetryInfo):
                        if packed.Is(kind.DESCRIPTOR):
                            details[kind] = kind.FromString(packed.value)
    except DecodeError:
        return {}
    return details
