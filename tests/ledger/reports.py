"""Reports for tests, and what they are compared with."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from ledger.database import Role, conninfo
from ledger.operations.reconcile import Answer, Options, reconcile
from tests.conftest import Database, Run

NAMES = ("rewardId", "userId", "campaignId", "rewardAmount", "currency", "rewardType", "code")
SAID: dict[str, Any] = dict(
    zip(NAMES, ("reward-1", "user-1", "campaign-1", "400", "USD", "points", ""), strict=True)
)
"""What a report says of the reward that `tests.rewards.reward` makes."""


def said(reward_id: str, **told: Any) -> dict[str, Any]:
    return {**SAID, "rewardId": reward_id, **told}


def csv_of(rows: Sequence[dict[str, Any]], names: Sequence[str] = NAMES, **style: Any) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, extrasaction="ignore", **style)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def compared(database: Database, run: Run, path: Path, options: Options, **how: Any) -> Answer:
    """What `ledger reconcile` finds, on a connection as it opens its own."""

    async def main() -> Answer:
        info = conninfo(database.url(Role.WRITER), Role.WRITER, is_service=False)
        async with await psycopg.AsyncConnection.connect(info, autocommit=True) as connection:
            return await reconcile(
                connection, path, options, **{"run_by": "Ada", "limit": 100, **how}
            )

    answer: Answer = run(main())
    return answer
