"""Books that are as large as one likes, filled by Postgres itself."""

import psycopg

CURRENCY = "USD"
FREQUENT_USER = "user-0"
FREQUENT_SHARE = 10
"""One reward in so many is the frequent user's: a history with many pages."""

# As the statement of `ledger.writing` leaves them; `ledger verify` finds nothing in them. Minutes
# of a year are filled evenly, in the order of the rewards.
_FILL = """
DROP TRIGGER rewards_are_sealed ON rewards;
DROP TRIGGER postings_are_sealed ON postings;

CREATE TEMPORARY TABLE told AS
SELECT
    n, 'r-' || n AS reward_id, 'campaign-' || n %% 5 AS campaign_id,
    CASE n %% %(share)s WHEN 0 THEN %(frequent)s ELSE 'user-' || n %% %(users)s END AS user_id,
    (1 + n %% 100)::numeric(20, 2) AS amount,
    timestamptz '2025-01-01 00:00Z' + n * (interval '365 days' / %(count)s) AS posted_at
FROM generate_series(1, %(count)s) AS n;

INSERT INTO rewards (
    reward_id, user_id, campaign_id, reward_amount, currency, believed_bytes, fingerprint,
    recorded_at
)
SELECT reward_id, user_id, campaign_id, trim_scale(amount), %(currency)s, 'filled', sha256(
        convert_to(user_id, 'UTF8') || '\\x00' || convert_to(trim_scale(amount)::text, 'UTF8')
        || '\\x00' || convert_to(%(currency)s, 'UTF8') || '\\x00'
        || convert_to(campaign_id, 'UTF8') || '\\x0000'
    ), posted_at
FROM told ORDER BY n;

INSERT INTO postings (
    user_id, currency, version, reward_id, debit_account, credit_account, amount, balance_after,
    posted_at
)
SELECT
    user_id, %(currency)s, row_number() OVER chain, reward_id, 'campaign:' || campaign_id,
    'user:' || user_id, amount, sum(amount) OVER chain, posted_at
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

_SEAL = """
ALTER TABLE rewards ALTER COLUMN seal TYPE bigint USING reward_seal(rewards);
ALTER TABLE postings ALTER COLUMN seal TYPE bigint USING posting_seal(postings);
CREATE TRIGGER rewards_are_sealed AFTER INSERT ON rewards
    FOR EACH ROW WHEN (NEW.seal IS NULL) EXECUTE FUNCTION refuse_older_version();
CREATE TRIGGER postings_are_sealed AFTER INSERT ON postings
    FOR EACH ROW WHEN (NEW.seal IS NULL) EXECUTE FUNCTION refuse_older_version();
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
    with psycopg.connect(url, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("SET work_mem = '256MB'")
        connection.execute(_FILL, told)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_SEAL)
        connection.execute("VACUUM (ANALYZE)")
