"""``ledger reverse`` and ``ledger adjust``: mend mistakes by postings of their own."""

import secrets
from collections.abc import Awaitable, Callable
from decimal import Decimal, InvalidOperation
from typing import Annotated, TypeVar

import typer

from ledger.correcting import (
    approve,
    list_corrections,
    list_proposals,
    propose,
    reject,
    reverse,
)
from ledger.correction import Adjustment, Corrected, Proposal, Reversal
from ledger.database import Connection, Role
from ledger.errors import (
    BalanceTooLow,
    IdempotencyConflict,
    InvalidAmount,
    NothingToReverse,
    ProposalNotFound,
    Refused,
    RewardNotFound,
    SamePerson,
    TooMuchToReverse,
    UnknownCurrency,
)
from ledger.money import plain
from ledger.terminal import AsJson, Row, ask, fail, operator, show

adjustments = typer.Typer(
    help="Postings between a user and a house account, on which two persons agree.",
    no_args_is_help=True,
)

SENTENCES: dict[type[Refused], str] = {
    RewardNotFound: "No reward has this rewardId: see `ledger history USER`.",
    NothingToReverse: "Nothing is left to reverse: it posted nothing, or all was taken back.",
    TooMuchToReverse: "Only {} is left of it: say at most that with --amount.",
    BalanceTooLow: "The user's balance would be {}: say --allow-negative if it may be.",
    InvalidAmount: "An amount is above zero, with no more decimals than its currency has.",
    UnknownCurrency: "Nobody registered the currency: see `ledger currency list`.",
    IdempotencyConflict: "The key stands for something else: choose another --key.",
    ProposalNotFound: "Nothing waits under this key: see `ledger adjust list --all`.",
    SamePerson: "Somebody else than who proposed it must approve it: --by.",
}
"""What a person is told of each refusal, and what to do next."""

Key = Annotated[str, typer.Argument(help="The key that `ledger adjust list` shows.")]
Reason = Annotated[str, typer.Option(help="Why, for whoever asks later.")]
By = Annotated[str, typer.Option(help="Who does it; the one logged in here if not said.")]
Allow = Annotated[bool, typer.Option("--allow-negative", help="The balance may go below zero.")]
Answer = TypeVar("Answer")


def reverse_(
    reward: Annotated[str, typer.Argument(help="The rewardId.")],
    reason: Reason,
    amount: Annotated[str | None, typer.Option(help="Only so much of what is left.")] = None,
    key: Annotated[str | None, typer.Option(help="The same key reverses once.")] = None,
    by: By = "",
    allow_negative: Allow = False,
    as_json: AsJson = False,
) -> None:
    """Take back what a reward credited, whole or in part, by the opposite posting.

    The whole is reversed once however often this is asked; a part needs a --key for that, or has
    one that is made up and shown.

    Example: ledger reverse xyzbb3ca --reason "credited by mistake" --amount 100
    """
    part = None if amount is None else _amount(amount)
    given = key or (f"reversal:{reward}" if part is None else f"reversal:{secrets.token_hex(8)}")
    asked = Reversal(given, reward, part, _reason(reason), by or operator())
    found = _ask(lambda c: reverse(c, asked, may_go_below_zero=allow_negative))
    show([_line(found)], as_json=as_json)


def corrections(
    user: str,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show what was corrected of a user, newest first: why, by whom, and the balance after it.

    Example: ledger corrections testuser1
    """
    found = ask(lambda c: list_corrections(c, user, limit))
    told = ("reason", "actor", "approver")
    show(
        [{**_line(each), **{n: getattr(each, n) for n in told}} for each in found], as_json=as_json
    )


@adjustments.command("propose")
def propose_(
    user: str,
    amount: Annotated[str, typer.Argument(help="Above zero is credited to the user.")],
    currency: str,
    reason: Reason,
    house: Annotated[str, typer.Option(help="The house account's name.")] = "goodwill",
    debit: Annotated[bool, typer.Option("--debit", help="Take it from the user instead.")] = False,
    key: Annotated[str | None, typer.Option(help="The same key is proposed once.")] = None,
    by: By = "",
) -> None:
    """Propose to credit a user from a house account, or with --debit the other way round.

    Nothing is posted before somebody else approves it.

    Example: ledger adjust propose testuser1 25 USD --reason "an apology"
    """
    if not house.strip():
        fail("A house account is needed: --house.")
    given = key or f"adjustment:{secrets.token_hex(8)}"
    size = -_amount(amount) if debit else _amount(amount)
    asked = Adjustment(given, user, currency.upper(), size, house, _reason(reason))
    is_new = _ask(lambda c: propose(c, asked, by or operator()))
    typer.echo(f"{given} {'is proposed' if is_new else 'was proposed before'}")


@adjustments.command("approve")
def approve_(key: Key, by: By = "", allow_negative: Allow = False, as_json: AsJson = False) -> None:
    """Post what somebody else proposed.

    Example: ledger adjust approve adjustment:4f1c --by finance.lead
    """
    found = _ask(lambda c: approve(c, key, by or operator(), may_go_below_zero=allow_negative))
    show([_line(found)], as_json=as_json)


@adjustments.command("reject")
def reject_(key: Key, by: By = "") -> None:
    """Give up what was proposed; it stays in the list of all.

    Example: ledger adjust reject adjustment:4f1c
    """
    _ask(lambda c: reject(c, key, by or operator()))
    typer.echo(f"{key} is rejected")


@adjustments.command("list")
def list_(
    with_decided: Annotated[
        bool, typer.Option("--all", help="Also what was approved or rejected.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what waits for a second person, oldest first.

    Example: ledger adjust list --all
    """
    found = ask(lambda c: list_proposals(c, with_decided=with_decided))
    show([_proposed(each) for each in found], as_json=as_json)


def _ask(act: Callable[[Connection], Awaitable[Answer]]) -> Answer:
    try:
        return ask(act, role=Role.CORRECTOR)
    except Refused as error:
        sentence = next(SENTENCES[kind] for kind in type(error).__mro__ if kind in SENTENCES)
        fail(sentence.format(*error.args))


def _amount(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal(0)
    if not amount.is_finite() or amount <= 0:
        fail(SENTENCES[InvalidAmount])
    return amount


def _reason(text: str) -> str:
    if not text.strip():
        fail("A reason is needed: --reason.")
    return text


def _line(found: Corrected) -> Row:
    row = found._asdict()
    names = ("key", "kind", "reward_id", "user_id", "debit_account", "credit_account", "amount")
    return {
        **{name: row[name] for name in names},
        **{name: row[name] for name in ("currency", "balance_after", "version", "posted_at")},
    }


def _proposed(proposal: Proposal) -> Row:
    row = {**proposal._asdict(), **proposal.posting._asdict()}
    del row["posting"]
    return {**row, "amount": plain(str(proposal.posting.amount))}
