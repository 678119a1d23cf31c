"""Books that are as large as one likes, filled by Postgres itself."""

import psycopg

CURRENCY = "USD"
FREQUENT_USER = "user-0"
FREQUENT_SHARE = 10
"""One reward in so many is the frequent user's: a history with many pages."""

# As the statement of `ledger.writing` leaves them, in commits of 64; `ledger verify` finds nothing
# in them. Minutes of a year are filled evenly, in the order of the rewards.
_FILL = """
CREATE TEMPORARY TABLE told AS
SELECT
    n, 'r-' || n AS reward_id, 'campaign-' || n %% 5 AS campaign_id,
    CASE n %% %(share)s WHEN 0 THEN %(frequent)s ELSE 'user-' || n %% %(users)s END AS user_id,
    (1 + n %% 100)::numeric(20, 2) AS amount, (1000 + n / 64)::text::xid8 AS written_by,
    timestamptz '2025-01-01 00:00Z' + n * (interval '365 days' / %(count)s) AS posted_at
FROM generate_series(1, %(count)s) AS n;

ALTER TABLE rewards DISABLE TRIGGER rewards_are_placed_on_commit;

INSERT INTO rewards (
    reward_id, user_id, campaign_id, reward_amount, currency, believed_bytes, fingerprint,
    recorded_at, written_by, seal
)
SELECT reward_id, user_id, campaign_id, trim_scale(amount), %(currency)s, 'filled', sha256(
        convert_to(user_id, 'UTF8') || '\\x00' || convert_to(trim_scale(amount)::text, 'UTF8')
        || '\\x00' || convert_to(%(currency)s, 'UTF8') || '\\x00'
        || convert_to(campaign_id, 'UTF8') || '\\x0000'
    ), posted_at, written_by, hash_record_extended(
        ROW(
            reward_id, NULL::text, NULL::text, NULL::text, NULL::text, NULL::timestamptz,
            NULL::text, NULL::text, NULL::text, NULL::text, NULL::text, 'filled'::bytea,
            NULL::text, posted_at
        ), 0
    )
FROM told ORDER BY n;

ALTER TABLE rewards ENABLE TRIGGER rewards_are_placed_on_commit;

INSERT INTO commits (position, written_by, first_number, last_number, committed_at, seal)
OVERRIDING SYSTEM VALUE
SELECT
    position, written_by, first_number, last_number, committed_at, hash_record_extended(
        ROW(position, written_by::text, first_number, last_number, committed_at), 0
    )
FROM (
    SELECT row_number() OVER (ORDER BY min(number)) AS position, written_by,
           min(number) AS first_number, max(number) AS last_number,
           max(recorded_at) AS committed_at
    FROM rewards GROUP BY written_by
) AS placed;
SELECT setval('commits_position_seq', max(position)) FROM commits;

INSERT INTO postings (
    user_id, currency, version, reward_id, debit_account, credit_account, amount, balance_after,
    posted_at, seal
)
SELECT
    user_id, %(currency)s, row_number() OVER chain, reward_id, 'campaign:' || campaign_id,
    'user:' || user_id, amount, sum(amount) OVER chain, posted_at,
    hash_record_extended(ROW(reward_id, posted_at), 0)
FROM told
WINDOW chain AS (PARTITION BY user_id ORDER BY n);

INSERT INTO balances (account, currency, debits, credits, version, posted_at)
SELECT account, currency, coalesce(sum(amount) FILTER (WHERE side = 'debit'), 0),
       coalesce(sum(amount) FILTER (WHERE side = 'credit'), 0), count(*), max(posted_at)
FROM entries GROUP BY account, currency;

INSERT INTO period_totals (currency, period, starts_at, amount, postings, users)
SELECT currency, period, date_trunc(period, posted_at, 'UTC'), sum(amount), count(*),
       count(*) FILTER (WHERE version = 1)
FROM postings CROSS JOIN (VALUES ('day'), ('minute')) AS periods (period)
GROUP BY 1, 2, 3;

INSERT INTO movements (
    day, currency, kind, campaign_id, type, reward_type, reward_category, credits, postings
)
SELECT (posted_at AT TIME ZONE 'UTC')::date, %(currency)s, 'reward', campaign_id, '', '', '',
       sum(amount), count(*)
FROM told
GROUP BY 1, 4;
"""

# Made anew afterwards: row by row they would take most of the time.
_INDEXES = """
SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid)
FROM pg_index
WHERE indrelid IN ('rewards'::regclass, 'postings'::regclass)
    AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
"""


def fill(url: str, count: int) -> None:
    """Put `count` rewards into the empty books of `url`, of a tenth as many users."""
    told = {
        "count": count,
        "users": max(count // 10, 10),
        "share": FREQUENT_SHARE,
        "frequent": FREQUENT_USER,
        "currency": CURRENCY,
    }
    with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("SET work_mem = '256MB'")
        connection.execute("SET maintenance_work_mem = '512MB'")
        indexes = connection.execute(_INDEXES).fetchall()
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}")
        connection.execute(_FILL, told)
        for _, definition in indexes:
            connection.execute(definition)
        connection.execute("VACUUM (ANALYZE)")
