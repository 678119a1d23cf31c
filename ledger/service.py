"""Request → reading → reply; of what changes the books, only what was asked to be corrected."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple, Protocol

from ledger import page, place, replies
from ledger.callers import Scope, calling
from ledger.commits import Committed, Stretch
from ledger.correction import Corrected, Reversal
from ledger.errors import CorrectionsOff, InvalidAmount, InvalidArgument
from ledger.reading import PastBalanceKey, Reader
from ledger.requests import (
    balance_key,
    balance_keys,
    choice,
    history_filter,
    identifier,
    reversal,
    time_of,
)
from ledger.seal import Seal
from ledger.service_finance import FinanceService
from ledger.v1 import ledger_pb2 as pb
from ledger.watching import HEARTBEAT_SECONDS, Feed

SERVICE = pb.DESCRIPTOR.services_by_name["LedgerService"].full_name
KEYS_MAX = 500
PAGE_SIZE = 50
PAGE_SIZE_MAX = 1000
PAGE_SIZE_MAX_BYTES = 2 * 1024 * 1024
"""A longer page ends early: gRPC clients refuse messages over 4 MiB, and would refuse it again."""


class Reverse(Protocol):
    """What takes back; see ``ledger.correcting.reverse`` for what it raises."""

    def __call__(self, reversal: Reversal, *, may_go_below_zero: bool) -> Awaitable[Corrected]:
        """The correction that stands in the books under the key of ``reversal`` now."""
        ...


class Part(NamedTuple):
    """A message of a stream, and the token with which the stream goes on behind it."""

    message: bytes
    token: str


class LedgerService(FinanceService):
    """``ledger.v1.LedgerService``: each method takes its request and gives its reply.

    They raise ``LedgerError``; ``ledger.problems`` has the status for it.
    """

    def __init__(self, reader: Reader, reverse: Reverse | None = None) -> None:
        """Without ``reverse`` nothing is corrected."""
        super().__init__(reader)
        self._reverse = reverse
        self._feed = Feed(reader.ask, reader.connection_besides)

    async def get_balance(self, request: pb.GetBalanceRequest) -> pb.GetBalanceResponse:
        """One balance, now or as of a time; concurrent calls share a round trip."""
        key = balance_key(request.user_id, request.currency)
        if request.HasField("as_of"):
            balance = await self._reader.past_balance(
                PastBalanceKey(*key, time_of(request.as_of, "as_of"))
            )
        else:
            balance = await self._reader.balance(key)
        response = pb.GetBalanceResponse()
        replies.write_balance(balance, response.balance)
        return response

    async def list_balances(self, request: pb.ListBalancesRequest) -> pb.ListBalancesResponse:
        """All balances of a user, by currency, now or as of a time."""
        user_id = identifier(request.user_id, "user_id")
        as_of = time_of(request.as_of, "as_of") if request.HasField("as_of") else None
        balances = await self._reader.balances_of(user_id, as_of)
        response = pb.ListBalancesResponse()
        for balance in balances:
            replies.write_balance(balance, response.balances.add())
        return response

    async def batch_get_balances(
        self, request: pb.BatchGetBalancesRequest
    ) -> pb.BatchGetBalancesResponse:
        """Many balances from one snapshot, in the order of their keys."""
        if not 1 <= len(request.keys) <= KEYS_MAX:
            raise InvalidArgument("keys", f"must be 1 to {KEYS_MAX}")
        keys = balance_keys(request.keys)
        as_of = time_of(request.as_of, "as_of") if request.HasField("as_of") else None
        balances = await self._reader.balances(keys, as_of)
        response = pb.BatchGetBalancesResponse()
        for balance in balances:
            replies.write_balance(balance, response.balances.add())
        return response

    async def list_rewards(self, request: pb.ListRewardsRequest) -> pb.ListRewardsResponse:
        """A page of a user's rewards and corrections, newest first."""
        chosen = history_filter(request)
        if request.page_size < 0:
            raise InvalidArgument("page_size", "is negative")
        size = min(request.page_size or PAGE_SIZE, PAGE_SIZE_MAX)
        seal = await self._reader.seal()
        before = page.start(seal, request.page_token, chosen)
        found = await self._reader.history(chosen, before, size, PAGE_SIZE_MAX_BYTES)
        response = pb.ListRewardsResponse()
        below, last = found.below, before
        size_bytes = 0
        for line in found.lines:
            size_bytes += replies.add(line, response).ByteSize()
            if last != before and size_bytes > PAGE_SIZE_MAX_BYTES:
                replies.remove_last(line, response)
                below = last
                break
            last = line.number
        if below is not None:
            response.next_page_token = page.token(seal, below, chosen)
        return response

    async def get_reward(self, request: pb.GetRewardRequest) -> pb.GetRewardResponse:
        """One reward."""
        reward = await self._reader.reward(identifier(request.reward_id, "reward_id"))
        response = pb.GetRewardResponse()
        replies.write_reward(reward, response.reward)
        return response

    async def list_currency_totals(
        self, request: pb.ListCurrencyTotalsRequest
    ) -> pb.ListCurrencyTotalsResponse:
        """The trial balance of every currency."""
        as_of = time_of(request.as_of, "as_of") if request.HasField("as_of") else None
        return pb.ListCurrencyTotalsResponse(
            totals=[
                pb.CurrencyTotals(
                    debits=replies.amount(totals.currency, totals.debits),
                    credits=replies.amount(totals.currency, totals.credits),
                    difference=replies.amount(totals.currency, totals.difference),
                    rewards=totals.rewards,
                    users=totals.users,
                )
                for totals in await self._reader.currency_totals(as_of)
            ]
        )

    async def reverse_reward(self, request: pb.ReverseRewardRequest) -> pb.ReverseRewardResponse:
        """Take back what a reward credited, in the name of whoever asks."""
        if self._reverse is None:
            raise CorrectionsOff
        asked = reversal(request, actor=calling.get().name)
        try:
            found = await self._reverse(asked, may_go_below_zero=request.allow_negative)
        except InvalidAmount:
            raise InvalidArgument("amount", "has more decimals than its currency") from None
        response = pb.ReverseRewardResponse()
        replies.write_correction(found, response.correction)
        return response

    async def watch_rewards(
        self, request: pb.WatchRewardsRequest, end: Callable[[Exception], None]
    ) -> AsyncGenerator[Part, None]:
        """Rewards and corrections as they are committed.

        ``end`` is called to end it while it is not asking.
        """
        is_chosen = choice(request)
        seal = await self._reader.seal()
        start = place.BEGINNING if request.from_beginning else None
        if request.WhichOneof("start") == "token":
            start = place.place_of(seal, request.token)
        loop = asyncio.get_running_loop()
        is_due_at = 0.0
        async with aclosing(self._feed.watch(start, end)) as stretches:
            async for stretch in stretches:
                if is_chosen is None:
                    yield _shared_part(seal, stretch)
                    continue
                chosen = [each for each in stretch.lines if is_chosen(each.line)]
                # Now and then also when all is passed over: a token must not grow old.
                if chosen or not stretch.lines or loop.time() >= is_due_at:
                    is_due_at = loop.time() + HEARTBEAT_SECONDS
                    yield _part(seal, stretch, chosen)


def _shared_part(seal: Seal, stretch: Stretch) -> Part:
    """Made once for all who may see the same of it."""
    key = Scope.CODES in calling.get().scopes
    if key not in stretch.made:
        stretch.made[key] = _part(seal, stretch, stretch.lines)
    part: Part = stretch.made[key]
    return part


def _part(seal: Seal, stretch: Stretch, chosen: Sequence[Committed]) -> Part:
    token = place.token(seal, stretch.through)
    response = pb.WatchRewardsResponse(token=token)
    for each in chosen:
        replies.add(each.line, response)
    return Part(response.SerializeToString(), token)
