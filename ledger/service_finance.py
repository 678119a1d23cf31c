"""Finance's questions of ``ledger.v1.LedgerService``: movements of a period, and trial balances."""

from datetime import date

from ledger.errors import InvalidArgument
from ledger.operations.totals import Group, list_movements, list_trial_balance
from ledger.reading import Reader
from ledger.replies import amount
from ledger.requests import time_of
from ledger.v1 import ledger_pb2 as pb

GROUPS = {
    pb.MOVEMENT_GROUP_UNSPECIFIED: None,
    pb.MOVEMENT_GROUP_CAMPAIGN: Group.CAMPAIGN,
    pb.MOVEMENT_GROUP_TYPE: Group.TYPE,
    pb.MOVEMENT_GROUP_REWARD_TYPE: Group.REWARD_TYPE,
    pb.MOVEMENT_GROUP_CATEGORY: Group.CATEGORY,
}


class FinanceService:
    """The methods that answer them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def list_movements(self, request: pb.ListMovementsRequest) -> pb.ListMovementsResponse:
        """What moved each currency, or each group of it, in a period of whole days."""
        start, end = _day(request.start_day, "start_day"), _day(request.end_day, "end_day")
        if end <= start:
            raise InvalidArgument("end_day", "is not after start_day")
        if request.group not in GROUPS:
            raise InvalidArgument("group", "is not known")
        group = GROUPS[request.group]
        found = await self._reader.ask_in_turn(list_movements, start, end, group)
        return pb.ListMovementsResponse(
            movements=[
                pb.Movement(
                    group=each.group or "",
                    opening=amount(each.currency, each.opening),
                    rewarded=amount(each.currency, each.rewarded),
                    reversed=amount(each.currency, each.reversed),
                    adjusted=amount(each.currency, each.adjusted),
                    closing=amount(each.currency, each.closing),
                    rewards=each.rewards,
                    reversals=each.reversals,
                    adjustments=each.adjustments,
                )
                for each in found.movements
            ],
            controls=[
                pb.MovementControl(
                    debits=amount(each.currency, each.debits),
                    credits=amount(each.currency, each.credits),
                    difference=amount(each.currency, each.difference),
                    postings=each.postings,
                )
                for each in found.controls
            ],
        )

    async def get_trial_balance(
        self, request: pb.GetTrialBalanceRequest
    ) -> pb.GetTrialBalanceResponse:
        """All accounts of every currency by their kind, now or as of a time."""
        as_of = time_of(request.as_of, "as_of") if request.HasField("as_of") else None
        return pb.GetTrialBalanceResponse(
            currencies=[
                pb.TrialBalance(
                    accounts=[
                        pb.AccountKind(
                            kind=kind.kind,
                            debits=amount(balance.currency, kind.debits),
                            credits=amount(balance.currency, kind.credits),
                            balance=amount(balance.currency, kind.balance),
                            postings=kind.postings,
                        )
                        for kind in balance.accounts
                    ],
                    debits=amount(balance.currency, balance.debits),
                    credits=amount(balance.currency, balance.credits),
                    difference=amount(balance.currency, balance.difference),
                    postings=balance.postings,
                )
                for balance in await self._reader.ask_in_turn(list_trial_balance, as_of)
            ]
        )


def _day(text: str, field: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidArgument(field, "is not a day such as 2026-10-01") from None
