-- Totals of past periods, so that the totals as of a time need no scan of the postings: whole
-- days, then whole minutes of that day, then the postings of that minute. Kept by the statement
-- that posts (ledger/writing.py), so they are never behind.

CREATE TABLE period_totals (
    currency text COLLATE "C" NOT NULL,
    period text COLLATE "C" NOT NULL,
    starts_at timestamptz NOT NULL,
    amount numeric NOT NULL,
    postings bigint NOT NULL,
    users bigint NOT NULL,
    CONSTRAINT period_is_totalled_once PRIMARY KEY (period, starts_at, currency),
    CONSTRAINT period_is_a_day_or_a_minute CHECK (period IN ('day', 'minute')),
    CONSTRAINT period_start_is_its_first_moment
        CHECK (starts_at = date_trunc(period, starts_at, 'UTC')),
    CONSTRAINT period_amount_is_positive CHECK (amount > 0 AND amount < 'Infinity'),
    CONSTRAINT period_has_postings CHECK (postings > 0),
    CONSTRAINT period_users_are_counted_once CHECK (users BETWEEN 0 AND postings)
);
COMMENT ON TABLE period_totals IS
    'What was posted in a currency in a day or minute of UTC; each posting counts in one of each.';
COMMENT ON COLUMN period_totals.amount IS 'All debits, and, as each posting has both legs, all credits.';
COMMENT ON COLUMN period_totals.users IS 'How many users were credited in the currency for the first time.';
COMMENT ON CONSTRAINT period_is_totalled_once ON period_totals IS
    'Also the index that answers: what was posted before this day, and on it before this minute?';

CREATE INDEX postings_by_time ON postings (posted_at);
COMMENT ON INDEX postings_by_time IS 'What was posted in this minute?';

INSERT INTO period_totals (currency, period, starts_at, amount, postings, users)
SELECT
    currency, period, date_trunc(period, posted_at, 'UTC'), sum(amount), count(*),
    count(*) FILTER (WHERE version = 1)
FROM postings CROSS JOIN (VALUES ('day'), ('minute')) AS periods (period)
GROUP BY 1, 2, 3;

CREATE TRIGGER period_totals_are_kept BEFORE DELETE OR TRUNCATE ON period_totals
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT ON period_totals TO ledger_reader, ledger_writer;
GRANT INSERT ON period_totals TO ledger_writer;
GRANT UPDATE (amount, postings, users) ON period_totals TO ledger_writer;
