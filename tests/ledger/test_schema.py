"""What the database itself refuses, whoever asks: each rule is broken here by raw SQL."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import psycopg
import pytest
import uvloop

from ledger.database import translated
from ledger.embedded import EmbeddedPostgres
from ledger.errors import DatabaseUnavailable
from ledger.operations.migrate import MIGRATIONS
from ledger.writing import post
from tests.conftest import OWNER, SUPERUSER, Database
from tests.rewards import reward

WRITER, READER, CORRECTOR = "ledger_writer", "ledger_reader", "ledger_corrector"
CLOSER = "ledger_closer"

APPEND_ONLY = ("23001", "books_are_append_only")
NOT_ALLOWED = "42501"

ROWS = {
    "currencies": {"code": "'GEMS'", "scale": "0", "name": "'Gems'"},
    "rewards": {
        "reward_id": "'reward-2'",
        "user_id": "'user-1'",
        "campaign_id": "'campaign-1'",
        "reward_amount": "1",
        "currency": "'USD'",
        "believed_bytes": "'{}'",
        "fingerprint": "sha256('')",
        "seal": "0",
    },
    "postings": {
        "user_id": "'user-1'",
        "currency": "'USD'",
        "version": "2",
        "reward_id": "'reward-2'",
        "debit_account": "'campaign:campaign-1'",
        "credit_account": "'user:user-1'",
        "amount": "1",
        "balance_after": "401",
        "posted_at": "clock_timestamp()",
        "seal": "0",
    },
    "balances": {
        "account": "'user:user-2'",
        "currency": "'USD'",
        "debits": "0",
        "credits": "1",
        "version": "1",
        "posted_at": "clock_timestamp()",
    },
    "period_totals": {
        "currency": "'USD'",
        "period": "'day'",
        "starts_at": "'2026-01-01 00:00Z'",
        "amount": "3",
        "postings": "2",
        "users": "1",
    },
    "movements": {
        "day": "'2026-01-01'",
        "currency": "'USD'",
        "kind": "'reward'",
        "campaign_id": "'campaign-1'",
        "type": "''",
        "reward_type": "''",
        "reward_category": "''",
        "debits": "0",
        "credits": "3",
        "postings": "2",
    },
    "corrections": {
        "correction_key": "'key-1'",
        "kind": "'reversal'",
        "reward_id": "'reward-1'",
        "user_id": "'user-1'",
        "currency": "'USD'",
        "debit_account": "'user:user-1'",
        "credit_account": "'campaign:campaign-1'",
        "amount": "1",
        "reason": "'a mistake'",
        "actor": "'ann'",
    },
    "proposals": {
        "proposal_key": "'key-2'",
        "user_id": "'user-1'",
        "currency": "'USD'",
        "debit_account": "'adjustment:goodwill'",
        "credit_account": "'user:user-1'",
        "amount": "1",
        "reason": "'an apology'",
        "proposed_by": "'ann'",
    },
    "statements": {
        "month": "'2026-01-01'",
        "text": "'a statement'",
        "sha256": "sha256('a statement')",
        "position": "1",
        "closed_by": "'ann'",
    },
    "sealing_keys": {"key": "sha256('')", "is_only": "true"},
    "commits": {
        "written_by": "'9'",
        "first_number": "8",
        "last_number": "8",
        "committed_at": "clock_timestamp()",
        "seal": "0",
    },
}
"""A row of each table that is accepted as it stands."""


def insert(table: str, **changed: str) -> str:
    """Inserts the row of ``table`` that is accepted, but for what is ``changed``."""
    row = ROWS[table] | changed
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(row.values())})"


class Refusal(NamedTuple):
    """A statement and what it is refused with."""

    statement: str
    sqlstate: str
    constraint: str


CHECK, UNIQUE, FOREIGN = "23514", "23505", "23503"

CURRENCY_REFUSALS = [
    Refusal(insert("currencies", code="'USD'"), UNIQUE, "currency_is_registered_once"),
    *(
        Refusal(insert("currencies", code=code), CHECK, "currency_code_is_well_formed")
        for code in ("'usd'", "''", "'1UP'", "'_A'", "'A B'", "'A'' '", f"'{'A' * 21}'", r"E'A\n'")
    ),
    *(
        Refusal(insert("currencies", scale=scale), CHECK, "currency_scale_is_bounded")
        for scale in ("-1", "19")
    ),
]

ROW_REFUSALS = [
    Refusal(insert("rewards", reward_id="'reward-1'"), UNIQUE, "reward_is_recorded_once"),
    Refusal(
        insert("rewards", reward_id="'reward-1'", user_id="'user-2'", campaign_id="'other'"),
        UNIQUE,
        "reward_is_recorded_once",
    ),
    Refusal(insert("rewards", reward_id="''"), CHECK, "reward_id_is_not_empty"),
    Refusal(insert("rewards", user_id="''"), CHECK, "reward_user_is_not_empty"),
    Refusal(insert("rewards", campaign_id="''"), CHECK, "reward_campaign_is_not_empty"),
    *(
        Refusal(
            insert("rewards", reward_amount=amount, currency="NULL"),
            CHECK,
            "reward_amount_is_not_negative",
        )
        for amount in ("-1", "-0.01", "'NaN'", "'Infinity'", "'-Infinity'")
    ),
    *(
        Refusal(
            insert("rewards", reward_amount=amount), CHECK, "reward_with_a_currency_has_an_amount"
        )
        for amount in ("NULL", "0")
    ),
    *(
        Refusal(insert("rewards", fingerprint=digest), CHECK, "reward_fingerprint_is_sha256")
        for digest in ("''", "sha224('')", "sha512('')")
    ),
    Refusal(insert("postings", reward_id="'reward-1'"), UNIQUE, "posting_reward_is_posted_once"),
    Refusal(
        insert(
            "postings",
            reward_id="'reward-1'",
            user_id="'user-2'",
            credit_account="'user:user-2'",
            currency="'EUR'",
        ),
        UNIQUE,
        "posting_reward_is_posted_once",
    ),
    Refusal(insert("postings", version="1"), UNIQUE, "posting_version_is_used_once"),
    *(
        Refusal(insert("postings", version=version), CHECK, "posting_version_is_positive")
        for version in ("0", "-1")
    ),
    *(
        Refusal(insert("postings", currency=code), FOREIGN, "posting_currency_is_registered")
        for code in ("'NOPE'", "'usd'", "''")
    ),
    *(
        Refusal(insert("postings", amount=amount), CHECK, "posting_amount_is_positive")
        for amount in ("0", "-1", "'-Infinity'")
    ),
    *(
        Refusal(insert("postings", amount=amount), CHECK, "posting_amount_is_finite")
        for amount in ("'NaN'", "'Infinity'")
    ),
    *(
        Refusal(insert("postings", balance_after=balance), CHECK, "posting_balance_is_finite")
        for balance in ("'NaN'", "'Infinity'", "'-Infinity'")
    ),
    Refusal(insert("postings", debit_account="'user:user-1'"), CHECK, "posting_legs_differ"),
    Refusal(insert("postings", credit_account="'user:user-2'"), CHECK, "posting_user_holds_a_leg"),
    Refusal(insert("postings", user_id="'user-2'"), CHECK, "posting_user_holds_a_leg"),
    Refusal(insert("balances", account="'user:user-1'"), UNIQUE, "balance_is_held_once"),
    Refusal(insert("balances", currency="'NOPE'"), FOREIGN, "balance_currency_is_registered"),
    *(
        Refusal(insert("balances", account=account), CHECK, "balance_account_is_of_a_kind")
        for account in ("'user-2'", "''", "'wallet:user-2'", "'User:user-2'", "' user:user-2'")
    ),
    *(
        Refusal(statement, CHECK, f"balance_{side}_are_not_negative")
        for side in ("debits", "credits")
        for value in ("-1", "-0.01", "'NaN'", "'Infinity'", "'-Infinity'")
        for statement in (
            insert("balances", **{side: value}),
            f"UPDATE balances SET {side} = {value}",
        )
    ),
    *(
        Refusal(insert("balances", version=version), CHECK, "balance_version_is_positive")
        for version in ("0", "-1")
    ),
    Refusal(
        f"{insert('period_totals')}; {insert('period_totals', amount='9')}",
        UNIQUE,
        "period_is_totalled_once",
    ),
    *(
        Refusal(insert("period_totals", period=period), CHECK, "period_is_a_day_or_a_minute")
        for period in ("'hour'", "'Day'")
    ),
    *(
        Refusal(insert("period_totals", **told), CHECK, "period_start_is_its_first_moment")
        for told in (
            {"starts_at": "'2026-01-01 00:01Z'"},
            {"period": "'minute'", "starts_at": "'2026-01-01 00:01:01Z'"},
            {"starts_at": "'2026-01-01 00:00+05:30'"},
        )
    ),
    *(
        Refusal(insert("period_totals", amount=amount), CHECK, "period_amount_is_positive")
        for amount in ("0", "-1", "'NaN'", "'Infinity'")
    ),
    Refusal(insert("period_totals", postings="0", users="0"), CHECK, "period_has_postings"),
    *(
        Refusal(insert("period_totals", users=users), CHECK, "period_users_are_counted_once")
        for users in ("-1", "3")
    ),
    Refusal(
        f"{insert('movements')}; {insert('movements', credits='9')}",
        UNIQUE,
        "movement_is_summed_once",
    ),
    *(
        Refusal(insert("movements", credits=amount), CHECK, "movement_amount_is_positive")
        for amount in ("0", "-1", "'NaN'", "'Infinity'")
    ),
    Refusal(insert("commits", last_number="7"), CHECK, "commit_numbers_are_in_order"),
    Refusal(
        insert("commits")
        .replace("(", "(position, ", 1)
        .replace("VALUES (", "OVERRIDING SYSTEM VALUE VALUES (1, "),
        UNIQUE,
        "commit_position_is_used_once",
    ),
]

_ADJUSTMENT = {
    "kind": "'adjustment'",
    "reward_id": "NULL",
    "debit_account": "'adjustment:goodwill'",
    "credit_account": "'user:user-1'",
    "reason": "'an apology'",
}
_APPROVED = f"""{insert("proposals", proposal_key="'key-1'")};
    UPDATE proposals SET state = 'approved', decided_by = 'bob', decided_at = now()
    WHERE proposal_key = 'key-1'; """

CORRECTORS_REFUSALS = [
    Refusal(
        f"{insert('corrections')}; {insert('corrections')}", UNIQUE, "correction_is_recorded_once"
    ),
    Refusal(insert("corrections", correction_key="''"), CHECK, "correction_key_is_not_empty"),
    Refusal(
        insert("corrections", kind="'gift'", reward_id="NULL"), CHECK, "correction_kind_is_known"
    ),
    Refusal(
        _APPROVED
        + insert("corrections", **{**_ADJUSTMENT, "reward_id": "'reward-1'"}, approver="'bob'"),
        CHECK,
        "correction_has_a_reward_to_reverse_or_none",
    ),
    *(
        Refusal(insert("corrections", amount=amount), CHECK, "correction_amount_is_positive")
        for amount in ("0", "-1")
    ),
    *(
        Refusal(insert("corrections", **{name: "''"}), CHECK, "correction_has_a_reason")
        for name in ("reason", "actor")
    ),
    Refusal(
        insert("corrections", approver="'bob'"),
        CHECK,
        "adjustment_is_approved_by_another_person",
    ),
    *(
        Refusal(insert("corrections", **told), CHECK, "reversal_is_the_opposite_posting")
        for told in (
            {"reward_id": "'unknown'"},
            {"credit_account": "'campaign:other'"},
            {"currency": "'EUR'"},
            {"user_id": "'user-2'", "debit_account": "'user:user-2'"},
            {"debit_account": "'campaign:campaign-1'", "credit_account": "'user:user-1'"},
        )
    ),
    *(
        Refusal(statement, CHECK, "reversals_do_not_exceed_their_reward")
        for statement in (
            insert("corrections", amount="400.01"),
            insert("corrections", amount="'NaN'"),
            "; ".join(
                insert("corrections", correction_key=key, amount=amount)
                for key, amount in (("'key-1'", "300"), ("'key-9'", "101"))
            ),
        )
    ),
    *(
        Refusal(
            _APPROVED + insert("corrections", **_ADJUSTMENT | told),
            CHECK,
            "adjustment_is_as_it_was_approved",
        )
        for told in (
            {"approver": "'cleo'"},
            {"approver": "'bob'", "amount": "2"},
            {"approver": "'bob'", "correction_key": "'key-9'"},
        )
    ),
    Refusal(f"{insert('proposals')}; {insert('proposals')}", UNIQUE, "proposal_is_made_once"),
    Refusal(insert("proposals", currency="'NOPE'"), FOREIGN, "proposal_currency_is_registered"),
    Refusal(insert("proposals", proposal_key="''"), CHECK, "proposal_key_is_not_empty"),
    *(
        Refusal(insert("proposals", amount=amount), CHECK, "proposal_amount_is_positive")
        for amount in ("0", "-1", "'NaN'", "'Infinity'")
    ),
    *(
        Refusal(insert("proposals", **told), CHECK, "proposal_is_between_a_user_and_the_house")
        for told in (
            {"debit_account": "'campaign:campaign-1'"},
            {"user_id": "'user-2'"},
        )
    ),
    *(
        Refusal(insert("proposals", **{name: "''"}), CHECK, "proposal_has_a_reason")
        for name in ("reason", "proposed_by")
    ),
    Refusal(
        insert("proposals", state="'lost'", decided_by="'bob'", decided_at="now()"),
        CHECK,
        "proposal_state_is_known",
    ),
    *(
        Refusal(insert("proposals", **told), CHECK, "proposal_is_decided_by_somebody")
        for told in (
            {"state": "'approved'"},
            {"decided_by": "'bob'"},
            {"state": "'rejected'", "decided_by": "'bob'"},
        )
    ),
    Refusal(
        insert("proposals", state="'approved'", decided_by="'ann'", decided_at="now()"),
        CHECK,
        "proposal_is_approved_by_another_person",
    ),
    Refusal(
        _APPROVED + "UPDATE proposals SET state = 'open', decided_by = NULL, decided_at = NULL",
        "23001",
        "proposal_is_decided_once",
    ),
    Refusal(insert("postings", correction_key="'key-1'"), CHECK, "posting_has_one_source"),
    Refusal(insert("postings", reward_id="NULL"), CHECK, "posting_has_one_source"),
    Refusal(
        insert("postings", reward_id="NULL", correction_key="'key-1'")
        + "; "
        + insert("postings", reward_id="NULL", correction_key="'key-1'", version="3"),
        UNIQUE,
        "posting_correction_is_posted_once",
    ),
    *(
        Refusal(
            insert("period_totals", corrections=count), CHECK, "period_corrections_are_postings"
        )
        for count in ("-1", "3")
    ),
]
"""What is broken by raw SQL as the role that corrects, and as the owner."""

_JANUARY = insert("period_totals") + "; "
"""The month of the statement that is accepted then: the first in which something was posted."""

STATEMENTS_REFUSALS = [
    Refusal(
        _JANUARY + insert("statements", month="'2026-01-02'"),
        CHECK,
        "statement_has_its_turn",
    ),
    Refusal(
        insert("period_totals", starts_at="'2026-01-01Z'")
        + "; ALTER TABLE statements DISABLE TRIGGER statements_are_checked; "
        + insert("statements", month="'2026-01-02'"),
        CHECK,
        "statement_month_has_its_first_day",
    ),
    Refusal(
        f"{_JANUARY}{insert('statements')};"
        " ALTER TABLE statements DISABLE TRIGGER statements_are_checked;"
        f" {insert('statements')}",
        UNIQUE,
        "statement_is_made_once",
    ),
    Refusal(f"{_JANUARY}{insert('statements')}; {insert('statements')}", CHECK,
            "statement_has_its_turn"),
    *(
        Refusal(_JANUARY + insert("statements", sha256=digest), CHECK,
                "statement_digest_is_of_its_text")
        for digest in ("''", "sha256('another')")
    ),
    Refusal(_JANUARY + insert("statements", closed_by="''"), CHECK,
            "statement_is_closed_by_somebody"),
    Refusal(insert("statements"), CHECK, "statement_has_its_turn"),
    Refusal(
        _JANUARY + insert("statements", month="date_trunc('month', now() AT TIME ZONE 'UTC')"),
        CHECK,
        "statement_month_is_over",
    ),
]  # fmt: skip
"""What is broken by raw SQL as the owner, who may also switch the check of the turn off."""

OWNERS_REFUSALS = [
    Refusal(insert("sealing_keys"), UNIQUE, "sealing_key_is_the_only_one"),
    Refusal(insert("sealing_keys", is_only="false"), CHECK, "sealing_key_is_the_only_row"),
    Refusal("UPDATE sealing_keys SET key = 'short'", CHECK, "sealing_key_is_long_enough"),
]

CHANGES = [
    "UPDATE rewards SET status = 'changed'",
    "UPDATE rewards SET status = 'changed' WHERE false",
    "DELETE FROM rewards",
    "DELETE FROM rewards WHERE false",
    "TRUNCATE rewards",
    insert("rewards") + " ON CONFLICT (reward_id) DO UPDATE SET code = ''",
    "UPDATE postings SET amount = 1",
    "UPDATE postings SET amount = 1 WHERE false",
    "DELETE FROM postings",
    "TRUNCATE postings",
    "TRUNCATE rewards, postings",
    "DELETE FROM balances",
    "TRUNCATE balances",
    "DELETE FROM period_totals",
    "TRUNCATE period_totals",
    "DELETE FROM movements",
    "TRUNCATE movements",
    "UPDATE commits SET last_number = last_number",
    "DELETE FROM commits",
    "TRUNCATE commits",
    "UPDATE currencies SET scale = 3",
    "DELETE FROM currencies",
    "DELETE FROM currencies WHERE code = 'XOF'",
    "TRUNCATE currencies CASCADE",
    "UPDATE corrections SET reason = 'another'",
    "DELETE FROM corrections",
    "TRUNCATE corrections",
    "UPDATE statements SET closed_by = 'bob'",
    "DELETE FROM statements",
    "TRUNCATE statements",
    "DELETE FROM proposals",
    "TRUNCATE proposals",
    "MERGE INTO postings USING rewards ON true WHEN MATCHED THEN DELETE",
]
"""What nobody may do to the books."""

POWERS = [
    "CREATE TABLE more ()",
    "CREATE INDEX ON postings (amount)",
    "CREATE VIEW mine AS SELECT 1 AS one",
    "CREATE FUNCTION mine() RETURNS integer LANGUAGE sql RETURN 1",
    "ALTER TABLE postings DROP CONSTRAINT posting_reward_is_posted_once",
    "ALTER TABLE postings DISABLE TRIGGER ALL",
    "ALTER TABLE postings ADD COLUMN more text",
    "DROP TABLE postings",
    "DROP VIEW entries",
    "DROP TRIGGER postings_are_append_only ON postings",
    "DROP FUNCTION refuse_change CASCADE",
    "CREATE RULE nothing AS ON INSERT TO postings DO INSTEAD NOTHING",
    "SET session_replication_role = replica",
    "SET ROLE ledger_owner",
    "SET SESSION AUTHORIZATION postgres",
    "CREATE ROLE more",
    "ALTER ROLE ledger_reader SUPERUSER",
    "CREATE SCHEMA more",
    "SELECT pg_read_file('postgresql.conf')",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    insert("currencies"),
    "UPDATE balances SET account = 'user:user-9'",
    "UPDATE balances SET currency = 'EUR'",
    "UPDATE period_totals SET currency = 'EUR'",
    "UPDATE period_totals SET starts_at = starts_at - interval '1 day'",
    "UPDATE movements SET campaign_id = 'another'",
    insert("sealing_keys"),
    "UPDATE sealing_keys SET key = key",
    "DELETE FROM sealing_keys",
]
"""What a service's role has no use for."""


@pytest.fixture(scope="module")
def books(postgres: EmbeddedPostgres, template: str) -> Iterator[Database]:
    """Books with one reward in them; every test here leaves them as they were."""
    with psycopg.connect(postgres.url(SUPERUSER, "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE schema TEMPLATE {template} OWNER {OWNER}")
        database = Database(postgres, "schema")

        async def begin() -> None:
            async with database.connected() as writer:
                await post(writer, [reward()])

        uvloop.run(begin())
        yield database
        connection.execute("DROP DATABASE schema WITH (FORCE)")


def refusal(books: Database, role: str, statement: str) -> tuple[str | None, str | None]:
    """SQLSTATE and constraint name of what ``role`` is refused with."""
    with (
        psycopg.connect(books.url(role)) as connection,
        connection.transaction(force_rollback=True),
    ):
        with pytest.raises(psycopg.Error) as caught, connection.transaction():
            connection.execute(statement)  # type: ignore[call-overload]
        return caught.value.sqlstate, caught.value.diag.constraint_name


@pytest.mark.parametrize("role", [WRITER, OWNER])
@pytest.mark.parametrize(
    "table", ["rewards", "postings", "balances", "period_totals", "movements", "commits"]
)
def test_the_row_that_the_refusals_change_is_accepted(
    books: Database, role: str, table: str
) -> None:
    with (
        psycopg.connect(books.url(role)) as connection,
        connection.transaction(force_rollback=True),
    ):
        assert connection.execute(insert(table)).rowcount == 1  # type: ignore[call-overload]


@pytest.mark.parametrize("table", ["rewards", "postings"])
def test_a_version_from_before_that_still_posts_is_told_that_the_books_are_away(
    books: Database, table: str
) -> None:
    with (
        psycopg.connect(books.url(WRITER)) as connection,
        pytest.raises(psycopg.Error) as caught,
    ):
        connection.execute(insert(table, seal="NULL"))  # type: ignore[call-overload]
    assert isinstance(translated(caught.value), DatabaseUnavailable)


@pytest.mark.parametrize("role", [WRITER, OWNER])
@pytest.mark.parametrize("broken", ROW_REFUSALS)
def test_a_row_that_breaks_a_rule_is_refused(books: Database, role: str, broken: Refusal) -> None:
    assert refusal(books, role, broken.statement) == (broken.sqlstate, broken.constraint)


@pytest.mark.parametrize("role", [CORRECTOR, OWNER])
@pytest.mark.parametrize("broken", CORRECTORS_REFUSALS)
def test_a_correction_that_breaks_a_rule_is_refused(
    books: Database, role: str, broken: Refusal
) -> None:
    assert refusal(books, role, broken.statement) == (broken.sqlstate, broken.constraint)


@pytest.mark.parametrize("broken", [*CURRENCY_REFUSALS, *OWNERS_REFUSALS, *STATEMENTS_REFUSALS])
def test_an_owners_row_that_breaks_a_rule_is_refused(books: Database, broken: Refusal) -> None:
    assert refusal(books, OWNER, broken.statement) == (broken.sqlstate, broken.constraint)


MISSED_OTHERWISE = {
    ("rewards", "reward_amount"),
    ("rewards", "currency"),
    ("postings", "reward_id"),
    ("rewards", "seal"),
    ("postings", "seal"),
    ("statements", "month"),
    *(
        ("corrections", column)
        for column in ("reward_id", "user_id", "currency", "debit_account", "credit_account")
    ),
}
"""What another rule misses first, or may miss."""


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (table, column)
        for table, row in ROWS.items()
        for column in row
        if (table, column) not in MISSED_OTHERWISE
    ],
)
def test_a_row_says_everything_that_is_needed(books: Database, table: str, column: str) -> None:
    before = _JANUARY if table == "statements" else ""
    sqlstate, _ = refusal(books, OWNER, before + insert(table, **{column: "NULL"}))
    assert sqlstate == "23502"


def test_every_rule_of_the_database_is_broken_here() -> None:
    """A rule that is taken away fails above; one that is added must be broken above."""
    broken = {
        refusal.constraint
        for refusal in (
            *CURRENCY_REFUSALS, *ROW_REFUSALS, *CORRECTORS_REFUSALS, *OWNERS_REFUSALS,
            *STATEMENTS_REFUSALS,
        )
    }  # fmt: skip
    names = (
        "0001_books.sql",
        "0004_watching.sql",
        "0005_sealing_key.sql",
        "0006_period_totals.sql",
        "0008_corrections.sql",
        "0011_movements.sql",
        "0012_statements.sql",
    )
    text = "".join((MIGRATIONS / name).read_text() for name in names)
    rules = set(re.findall(r"CONSTRAINT (\w+)\s+(?:CHECK|UNIQUE|PRIMARY|FOREIGN)", text))
    rules |= set(re.findall(r"CONSTRAINT = '(\w+)'", text)) - {APPEND_ONLY[1]}
    rules |= set(re.findall(r"CREATE UNIQUE INDEX (posting_\w+)", text))
    assert broken == rules


@pytest.mark.parametrize("role", [OWNER, SUPERUSER])
@pytest.mark.parametrize("statement", CHANGES)
def test_what_was_posted_stays(books: Database, role: str, statement: str) -> None:
    assert refusal(books, role, statement) == APPEND_ONLY


@pytest.mark.parametrize("role", [WRITER, READER, CLOSER])
@pytest.mark.parametrize("statement", [*CHANGES, *POWERS])
def test_a_service_can_do_nothing_but_its_job(books: Database, role: str, statement: str) -> None:
    assert refusal(books, role, statement)[0] == NOT_ALLOWED


@pytest.mark.parametrize(
    "statement",
    [
        *(insert(table) for table in ROWS),
        "UPDATE balances SET credits = credits + 1",
        "SELECT 1 FROM rewards FOR UPDATE",
    ],
)
def test_the_reader_writes_nothing(books: Database, statement: str) -> None:
    assert refusal(books, READER, statement)[0] == NOT_ALLOWED


@pytest.mark.parametrize(
    "statement",
    [
        *(insert(table) for table in ROWS if table != "statements"),
        insert("statements", login="'ann'"),
        insert("statements", closed_at="now()"),
        "UPDATE balances SET credits = credits + 1",
        "SELECT 1 FROM rewards",
    ],
)
def test_who_closes_a_month_writes_statements_and_nothing_else(
    books: Database, statement: str
) -> None:
    assert refusal(books, CLOSER, statement)[0] == NOT_ALLOWED


RELATIONS = (
    *("currencies", "rewards", "postings", "balances", "entries"),
    *("period_totals", "movements", "sealing_keys", "commits", "corrections", "proposals"),
    "statements",
)
READERS_ONLY = {"entries", "sealing_keys", "proposals", "statements"}
BOOKS = "{" + ",".join(RELATIONS) + "}"


def test_a_service_has_no_right_to_the_books_that_is_not_listed_here(books: Database) -> None:
    rights = books.rows(f"""
        SELECT granted.grantee::regrole::text, relname::text, granted.privilege_type
        FROM pg_class
        CROSS JOIN LATERAL aclexplode(relacl) AS granted
        WHERE oid = ANY('{BOOKS}'::regclass[]) AND granted.grantee <> relowner
        UNION ALL
        SELECT granted.grantee::regrole::text, relname || '.' || attname, granted.privilege_type
        FROM pg_class
        JOIN pg_attribute ON attrelid = pg_class.oid
        CROSS JOIN LATERAL aclexplode(attacl) AS granted
        WHERE pg_class.oid = ANY('{BOOKS}'::regclass[])
    """)
    assert sorted(rights) == sorted(
        [(READER, relation, "SELECT") for relation in RELATIONS]
        + [(WRITER, relation, "SELECT") for relation in RELATIONS if relation not in READERS_ONLY]
        + [
            (WRITER, table, "INSERT")
            for table in (
                *("rewards", "postings", "balances", "period_totals", "movements", "commits"),
            )
        ]
        + [(WRITER, f"period_totals.{c}", "UPDATE") for c in ("amount", "postings", "users")]
        + [(WRITER, f"movements.{column}", "UPDATE") for column in ("credits", "postings")]
        + [
            (WRITER, f"balances.{column}", "UPDATE")
            for column in ("debits", "credits", "version", "posted_at")
        ]
        + [
            (CORRECTOR, relation, "SELECT")
            for relation in RELATIONS
            if relation not in {"entries", "sealing_keys", "statements"}
        ]
        + [
            (CORRECTOR, table, "INSERT")
            for table in (
                *("corrections", "proposals", "postings", "balances", "period_totals"),
                *("movements", "commits"),
            )
        ]
        + [
            (CORRECTOR, f"period_totals.{column}", "UPDATE")
            for column in (
                *("amount", "postings", "users", "corrections"),
                *("reversals", "reversed", "granted", "taken"),
            )
        ]
        + [
            (CORRECTOR, f"movements.{column}", "UPDATE")
            for column in ("debits", "credits", "postings")
        ]
        + [
            (CORRECTOR, f"balances.{column}", "UPDATE")
            for column in ("debits", "credits", "version", "posted_at")
        ]
        + [
            (CORRECTOR, f"proposals.{column}", "UPDATE")
            for column in ("state", "decided_by", "decided_at")
        ]
        + [
            (CLOSER, relation, "SELECT")
            for relation in (
                *("currencies", "period_totals", "commits", "statements"),
                *("movements", "postings", "corrections"),
            )
        ]
        + [(CLOSER, f"statements.{column}", "INSERT") for column in ROWS["statements"]]
        + [(role, "statements.month", "SELECT") for role in (WRITER, CORRECTOR)]
    )


def test_the_public_has_no_right_to_anything(books: Database) -> None:
    assert (
        books.rows("""
        SELECT relname::text, granted.privilege_type
        FROM pg_class
        CROSS JOIN LATERAL aclexplode(relacl) AS granted
        WHERE relnamespace = 'public'::regnamespace AND granted.grantee = 0
        UNION ALL
        SELECT proname, granted.privilege_type
        FROM pg_proc
        CROSS JOIN LATERAL aclexplode(coalesce(proacl, acldefault('f', proowner))) AS granted
        WHERE pronamespace = 'public'::regnamespace AND granted.grantee = 0
    """)
        == []
    )


def test_no_role_of_ours_has_a_power_over_the_cluster(books: Database) -> None:
    powers = books.rows("""
        SELECT rolname FROM pg_roles
        WHERE rolname IN ('ledger_writer', 'ledger_reader', 'ledger_corrector', 'ledger_closer')
          AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)
        UNION ALL
        SELECT member::regrole::text FROM pg_auth_members
        WHERE member IN (
            'ledger_writer'::regrole, 'ledger_reader'::regrole, 'ledger_corrector'::regrole,
            'ledger_closer'::regrole
        )
        -- Who corrects may be the one who reads, too, but not by itself.
        AND NOT (
            (member, roleid) = ('ledger_corrector'::regrole, 'ledger_reader'::regrole)
            AND NOT (inherit_option OR admin_option)
        )
        UNION ALL
        SELECT rolname FROM pg_roles WHERE rolname = 'ledger_owner' AND rolsuper
    """)
    assert powers == []


def test_a_posting_has_a_debit_and_a_credit_entry(books: Database) -> None:
    assert books.rows("""
        SELECT account, side, currency, amount::text, user_id, version, reward_id
        FROM entries ORDER BY side DESC
    """) == [
        ("campaign:campaign-1", "debit", "USD", "400.00", "user-1", 1, "reward-1"),
        ("user:user-1", "credit", "USD", "400.00", "user-1", 1, "reward-1"),
    ]
    assert books.rows("""
        SELECT count(*) FROM entries JOIN postings ON postings.posted_at = entries.posted_at
    """) == [(2,)]


def test_every_table_view_and_index_says_what_it_is_for(books: Database) -> None:
    described = books.rows(f"""
        SELECT relname, relkind::text, coalesce(
            obj_description(pg_class.oid, 'pg_class'),
            obj_description(pg_constraint.oid, 'pg_constraint')
        )
        FROM pg_class
        LEFT JOIN pg_index ON indexrelid = pg_class.oid
        LEFT JOIN pg_constraint ON conindid = pg_class.oid AND contype IN ('p', 'u', 'x')
        WHERE coalesce(indrelid, pg_class.oid) = ANY('{BOOKS}'::regclass[])
    """)
    assert len(described) == 11 + 1 + 22
    for name, kind, comment in described:
        assert comment, f"{name} has no comment"
        # An index stands for a question that is asked of it.
        assert kind != "i" or comment.endswith("?"), name


def test_every_constraint_is_named_as_a_sentence(books: Database) -> None:
    names = books.rows(f"""
        SELECT conname FROM pg_constraint
        WHERE conrelid = ANY('{BOOKS}'::regclass[]) AND contype <> 'n'
        UNION ALL
        SELECT tgname FROM pg_trigger
        WHERE tgrelid = ANY('{BOOKS}'::regclass[]) AND NOT tgisinternal
    """)
    assert len(names) > 20
    for (name,) in names:
        assert re.search(r"_(is|are|has|holds|differ)(_|$)", name), name


def test_every_text_of_a_key_is_compared_byte_by_byte(books: Database) -> None:
    """Otherwise an index depends on the version of the system's collations."""
    assert books.rows("""
        SELECT table_name, column_name FROM information_schema.columns
        WHERE table_name IN (
            'currencies', 'rewards', 'postings', 'balances', 'period_totals', 'movements'
        )
          AND data_type = 'text' AND collation_name IS DISTINCT FROM 'C'
    """) == [("currencies", "name")]
