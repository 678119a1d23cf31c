"""What is kept of a believed delivery that cannot be posted, and why."""

from collections.abc import Awaitable
from typing import Protocol

from ingress.errors import NotAReward
from ledger.errors import IdempotencyConflict
from ledger.quarantine import Unposted


class Keeper(Protocol):
    """Where what cannot be posted is kept: a ``ledger.quarantine.Quarantine``, or a spool too."""

    def keep(self, delivery: Unposted) -> Awaitable[None]:
        """Done when it is kept for good."""
        ...


def unposted(
    text: bytes,
    error: Exception,
    *,
    reward_id: str | None,
    token: str | None,
    form: str | None,
    read_under: str,
    content_type: str | None = None,
) -> Unposted:
    """The believed ``text`` as the quarantine keeps it, with the reason that ``error`` is.

    ``reward_id`` is kept of a conflict only: it then names the reward in the books.
    ``read_under`` is the digest of the mapping by which it was read.
    """
    return Unposted(
        believed_bytes=text,
        reason=type(error).__name__,
        detail=f"{error.field} {error.reason}".strip() if isinstance(error, NotAReward) else None,
        reward_id=reward_id if isinstance(error, IdempotencyConflict) else None,
        token=token,
        form=form,
        content_type=content_type,
        read_under=read_under,
    )
