"""Errors become gRPC statuses in one table."""

from typing import NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus

from ledger.errors import (
    BalanceTooLow,
    CorrectionsOff,
    DeadlineExceeded,
    FellBehind,
    IdempotencyConflict,
    InvalidArgument,
    NothingToReverse,
    Overloaded,
    PermissionDenied,
    RewardNotFound,
    TooMuchToReverse,
    Unauthenticated,
    Unavailable,
)

DOMAIN = "reward-ledger"


class Problem(NamedTuple):
    """What a caller is told of an error: a status and a stable reason, in constant words."""

    status: grpc.StatusCode
    reason: str
    text: str


PROBLEMS: dict[type[Exception], Problem] = {
    InvalidArgument: Problem(
        grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", "the request is malformed"
    ),
    DecodeError: Problem(
        grpc.StatusCode.INVALID_ARGUMENT, "NOT_A_MESSAGE", "the request is not this message"
    ),
    Unauthenticated: Problem(
        grpc.StatusCode.UNAUTHENTICATED,
        "UNAUTHENTICATED",
        "no token and no certificate that is known here",
    ),
    PermissionDenied: Problem(
        grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", "the caller has not the scope"
    ),
    RewardNotFound: Problem(
        grpc.StatusCode.NOT_FOUND, "REWARD_NOT_FOUND", "no reward has this reward_id"
    ),
    NothingToReverse: Problem(
        grpc.StatusCode.FAILED_PRECONDITION,
        "NOTHING_TO_REVERSE",
        "the reward posted nothing, or all of it was taken back",
    ),
    TooMuchToReverse: Problem(
        grpc.StatusCode.FAILED_PRECONDITION,
        "TOO_MUCH_TO_REVERSE",
        "less is left of what the reward credited",
    ),
    BalanceTooLow: Problem(
        grpc.StatusCode.FAILED_PRECONDITION,
        "BALANCE_TOO_LOW",
        "the user's balance would go below zero",
    ),
    IdempotencyConflict: Problem(
        grpc.StatusCode.ALREADY_EXISTS, "KEY_CONFLICT", "the key stands for another correction"
    ),
    CorrectionsOff: Problem(
        grpc.StatusCode.UNIMPLEMENTED, "CORRECTIONS_OFF", "this service corrects nothing"
    ),
    Overloaded: Problem(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", "too much is waiting already"
    ),
    FellBehind: Problem(
        grpc.StatusCode.ABORTED, "FELL_BEHIND", "what came was not taken; go on from the token"
    ),
    DeadlineExceeded: Problem(
        grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "it took too long; ask again"
    ),
    Unavailable: Problem(
        grpc.StatusCode.UNAVAILABLE, "BOOKS_UNAVAILABLE", "the books cannot be reached; ask again"
    ),
    Exception: Problem(grpc.StatusCode.INTERNAL, "INTERNAL", "a fault of ours"),
}
"""Every error that an answer can meet; the nearest ancestor decides."""

RETRY_SECONDS = 1
"""How long a caller is asked to wait before it asks again."""


def problem_of(error: BaseException, token: str = "") -> tuple[Problem, RpcStatus]:
    """The row of the table for ``error``, and the details that its caller gets with it.

    ``token`` is where a stream that was ended goes on.
    """
    problem = next(PROBLEMS[ancestor] for ancestor in type(error).__mro__ if ancestor in PROBLEMS)
    status = RpcStatus(code=problem.status.value[0], message=problem.text)
    info = ErrorInfo(reason=problem.reason, domain=DOMAIN)
    if isinstance(error, PermissionDenied):
        info.metadata["scope"] = error.scope
    if isinstance(error, TooMuchToReverse):
        info.metadata["left"] = error.left
    if isinstance(error, BalanceTooLow):
        info.metadata["balance"] = error.balance
    if token:
        info.metadata["token"] = token
    status.details.add().Pack(info)
    if problem.status is grpc.StatusCode.INVALID_ARGUMENT:
        violation = BadRequest.FieldViolation(description=problem.text)
        if isinstance(error, InvalidArgument):
            violation = BadRequest.FieldViolation(field=error.field, description=error.reason)
        status.details.add().Pack(BadRequest(field_violations=[violation]))
    if isinstance(error, Unavailable):
        retry = RetryInfo()
        retry.retry_delay.seconds = RETRY_SECONDS
        status.details.add().Pack(retry)
    return problem, status
