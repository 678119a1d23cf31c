"""Reading the believed bytes again, against what stands in the columns."""

import json
from typing import Any

import psycopg

from ingress.documents import RULE, look_at_documents
from ingress.mapping import Mapping
from ingress.payload import read_reward
from ledger.database import Role, conninfo
from ledger.operations.finding import Finding
from ledger.operations.importing import WEBHOOK_TYPE
from ledger.writing import post
from tests.conftest import SUPERUSER, Database, Run
from tests.ingress.deliveries import body
from tests.ledger.test_cli import ledger

WHOLE = {
    "rewardType": "points",
    "rewardName": "15 dollars",
    "code": "SECRET-CODE",
    "status": "issued",
    "transactionId": "t1",
    "rewardExpiry": 1900000000,
    "body": "a body",
    "tnc": ["a term"],
    "webhookType": "reward",
    "details": {"currency": "USD", "rewardCategory": "gold", "more": [1.50, "é"]},
}
CHANGES = {
    "user_id": "'other'",
    "campaign_id": "'other'",
    "type": "'other'",
    "reward_type": "'other'",
    "reward_name": "NULL",
    "reward_amount": "16",
    "currency": "'EUR'",
    "code": "'THE-OTHER-CODE'",
    "status": "'other'",
    "transaction_id": "NULL",
    "reward_expires_at": "now()",
    "reward_category": "'other'",
    "details": "'{}'",
    "body": "'other'",
    "tnc": "NULL",
    "webhook_type": "'other'",
}


def tell(database: Database, run: Run, *texts: bytes, mapping: Mapping | None = None) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            for text in texts:
                reward = read_reward(text, mapping or Mapping())
                assert reward is not None
                await post(connection, [reward])

    run(main())


def look(database: Database, mapping: Mapping | None = None) -> list[Finding]:
    info = conninfo(database.url(), Role.READER, is_service=False)
    with psycopg.connect(info) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        row = connection.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        return look_at_documents(info, row[0], 1, 100, mapping or Mapping())


def told(**changed: Any) -> bytes:
    return body(**(WHOLE | changed))


def test_columns_that_are_what_the_bytes_say_are_no_finding(database: Database, run: Run) -> None:
    tell(database, run, told(), body(rewardId="r2"), body(rewardId="r3", rewardAmount=None))
    odd = told(rewardId="r4", rewardAmount=0.10).replace(b"issued", b"\\u0000 and \\ud800")
    tell(database, run, odd)
    assert look(database) == []


def test_a_column_that_the_bytes_do_not_say_is_named(database: Database, run: Run) -> None:
    tell(database, run, body(rewardId="r2"), *(told(rewardId=column) for column in CHANGES))
    changes = "".join(
        f"UPDATE rewards SET {column} = {to} WHERE reward_id = '{column}';"
        for column, to in CHANGES.items()
    )
    database.rows(f"SET session_replication_role = replica; {changes}", SUPERUSER)
    found = look(database)
    assert [(each.rule, each.subject) for each in found] == [
        (RULE, f"{column} {column}") for column in CHANGES
    ]
    assert [each.subject for each in found if each.expected == each.found] == []
    assert "SECRET" not in repr(found)


UNREADABLE = {
    "x": "is not JSON",
    "[]": "is not an object",
    '{"webhookType":"nudge"}': "a nudge, which is ignored",
}


def test_bytes_that_tell_no_reward_are_named(database: Database, run: Run) -> None:
    tell(database, run, *(body(rewardId=f"r{i}") for i in range(len(UNREADABLE))))
    changes = "".join(
        f"UPDATE rewards SET believed_bytes = '{text}' WHERE reward_id = 'r{i}';"
        for i, text in enumerate(UNREADABLE)
    )
    database.rows(f"SET session_replication_role = replica; {changes}", SUPERUSER)
    assert [(each.subject, each.expected) for each in look(database)] == [
        (f"r{i}", why) for i, why in enumerate(UNREADABLE.values())
    ]


def test_another_mapping_than_then_is_named_as_what_it_reads_otherwise(
    database: Database, run: Run
) -> None:
    tell(database, run, body(rewardId="r1", details={}), body(rewardId="r2"))
    assert [
        (f.subject, f.expected, f.found) for f in look(database, Mapping(default_currency="EUR"))
    ] == [("r1 currency", "EUR", "POINTS")]


def test_what_was_imported_is_read_by_the_default_names(database: Database, run: Run) -> None:
    tell(database, run, body(rewardId="r1", webhookType=WEBHOOK_TYPE, details={"currency": "USD"}))
    assert look(database, Mapping(default_currency="EUR")) == []


def test_the_command_reads_documents_when_it_is_asked_to(database: Database, run: Run) -> None:
    tell(database, run, body(rewardId="r1", details={}), told(rewardId="r2"))
    done = ledger(database, "verify", "--documents", "--json", INGRESS_DEFAULT_CURRENCY="EUR")
    assert done.returncode == 1
    assert [finding["subject"] for finding in json.loads(done.stdout)] == ["r1 currency"]
