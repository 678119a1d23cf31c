"""Asks the ledger service: ``LedgerClient``, and ``AsyncLedgerClient`` for asyncio.

::

    with LedgerClient("127.0.0.1:50051") as ledger:
        ledger.get_balance("user-1", "USD").amount

Both have the same methods: ``questions`` and ``finance`` say what each one asks and what comes
back. Answers are ``values``, whatever goes wrong is one of ``errors``, ``watching`` goes on where
it was cut, and ``connection`` knows who may be told what over which wire. Nothing here needs what
only the service needs.
"""

from ledger.client.clients import AsyncLedgerClient, LedgerClient
from ledger.client.connection import Tls
from ledger.client.errors import (
    BalanceTooLow,
    BooksUnavailable,
    ClientError,
    CorrectionsOff,
    DeadlineExceeded,
    FellBehind,
    InvalidArgument,
    KeyConflict,
    NothingToReverse,
    Overloaded,
    PermissionDenied,
    Refused,
    RewardNotFound,
    ServiceFault,
    TooMuchToReverse,
    Unauthenticated,
    Unavailable,
    Unreachable,
)
from ledger.client.finance import (
    AccountKind,
    Movement,
    MovementControl,
    Movements,
    TrialBalance,
)
from ledger.client.values import (
    Balance,
    Correction,
    CorrectionKind,
    CurrencyTotals,
    Posting,
    Reward,
    RewardPage,
)
from ledger.client.watching import (
    AsyncHistoryWatch,
    AsyncRewardWatch,
    HistoryWatch,
    RewardWatch,
)

__all__ = [
    "AccountKind",
    "AsyncHistoryWatch",
    "AsyncLedgerClient",
    "AsyncRewardWatch",
    "Balance",
    "BalanceTooLow",
    "BooksUnavailable",
    "ClientError",
    "Correction",
    "CorrectionKind",
    "CorrectionsOff",
    "CurrencyTotals",
    "DeadlineExceeded",
    "FellBehind",
    "HistoryWatch",
    "InvalidArgument",
    "KeyConflict",
    "LedgerClient",
    "Movement",
    "MovementControl",
    "Movements",
    "NothingToReverse",
    "Overloaded",
    "PermissionDenied",
    "Posting",
    "Refused",
    "Reward",
    "RewardNotFound",
    "RewardPage",
    "RewardWatch",
    "ServiceFault",
    "Tls",
    "TooMuchToReverse",
    "TrialBalance",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
]
