-- What finance asks for: what was posted in a day, by currency, kind, campaign, type, reward type
-- and category; and, of a period's totals, what was not a reward. Both kept by the statements
-- that post (ledger/writing.py, ledger/correcting.py), so they are never behind.

-- Who posts without a seal (0013_seals.sql) is a version from before, which would not keep these
-- sums. It is told what it takes for books that are away: its senders send again, or it spools, until
-- the new version is there. The tables are locked from here to the end, so the sums are whole.
ALTER TABLE rewards ADD COLUMN seal bigint;
ALTER TABLE postings ADD COLUMN seal bigint;

CREATE FUNCTION refuse_older_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'these books were migrated for a newer version'
        USING ERRCODE = 'cannot_connect_now';
END
$$;
REVOKE ALL ON FUNCTION refuse_older_version FROM PUBLIC;
CREATE TRIGGER rewards_are_sealed AFTER INSERT ON rewards
    FOR EACH ROW WHEN (NEW.seal IS NULL) EXECUTE FUNCTION refuse_older_version();
CREATE TRIGGER postings_are_sealed AFTER INSERT ON postings
    FOR EACH ROW WHEN (NEW.seal IS NULL) EXECUTE FUNCTION refuse_older_version();

CREATE TABLE movements (
    day date NOT NULL,
    currency text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    campaign_id text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    reward_type text COLLATE "C" NOT NULL,
    reward_category text COLLATE "C" NOT NULL,
    debits numeric NOT NULL DEFAULT 0,
    credits numeric NOT NULL DEFAULT 0,
    postings bigint NOT NULL,
    CONSTRAINT movement_is_summed_once
        PRIMARY KEY (day, currency, kind, campaign_id, type, reward_type, reward_category),
    -- One rule alone, because each statement that posts pays for every one anew; the others are
    -- for `ledger verify`. A NaN is above every number, and no sum of it is finite.
    CONSTRAINT movement_amount_is_positive
        CHECK (debits + credits > 0 AND debits + credits < 'Infinity')
);
COMMENT ON TABLE movements IS
    'What was posted in a day of UTC, by currency, kind, campaign and so on.';
COMMENT ON COLUMN movements.campaign_id IS
    'Of the reward that was posted or reversed, as the three after it; empty for what it does not'
    ' tell. No longer than an index can hold: 200 characters of it, 100 of the others.';
COMMENT ON COLUMN movements.debits IS
    'What users were debited; the other leg of each posting credits a house account as much.';
COMMENT ON COLUMN movements.credits IS 'What users were credited.';
COMMENT ON CONSTRAINT movement_is_summed_once ON movements IS
    'Also the index that answers: what was posted on these days?';

INSERT INTO movements (
    day, currency, kind, campaign_id, type, reward_type, reward_category, debits, credits, postings
)
SELECT
    (posted_at AT TIME ZONE 'UTC')::date, postings.currency,
    coalesce(kind, 'reward'), left(coalesce(campaign_id, ''), 200), left(coalesce(type, ''), 100),
    left(coalesce(reward_type, ''), 100), left(coalesce(reward_category, ''), 100),
    coalesce(sum(postings.amount) FILTER (
        WHERE postings.debit_account = 'user:' || postings.user_id
    ), 0),
    coalesce(sum(postings.amount) FILTER (
        WHERE postings.credit_account = 'user:' || postings.user_id
    ), 0),
    count(*)
FROM postings
LEFT JOIN corrections ON corrections.correction_key = postings.correction_key
LEFT JOIN rewards ON rewards.reward_id = coalesce(postings.reward_id, corrections.reward_id)
GROUP BY 1, 2, 3, 4, 5, 6, 7;

CREATE TRIGGER movements_are_kept BEFORE DELETE OR TRUNCATE ON movements
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

ALTER TABLE period_totals
    ADD COLUMN reversals bigint NOT NULL DEFAULT 0,
    ADD COLUMN reversed numeric NOT NULL DEFAULT 0,
    ADD COLUMN granted numeric NOT NULL DEFAULT 0,
    ADD COLUMN taken numeric NOT NULL DEFAULT 0;
COMMENT ON COLUMN period_totals.reversals IS 'How many of its corrections took a reward back.';
COMMENT ON COLUMN period_totals.reversed IS 'What of the amount took rewards back.';
COMMENT ON COLUMN period_totals.granted IS 'What of the amount adjustments credited to users.';
COMMENT ON COLUMN period_totals.taken IS 'What of the amount adjustments debited from users.';

UPDATE period_totals AS kept
SET reversals = told.reversals, reversed = told.reversed, granted = told.granted,
    taken = told.taken
FROM (
    SELECT
        postings.currency, period, date_trunc(period, posted_at, 'UTC') AS starts_at,
        count(*) FILTER (WHERE kind = 'reversal') AS reversals,
        coalesce(sum(postings.amount) FILTER (WHERE kind = 'reversal'), 0) AS reversed,
        coalesce(sum(postings.amount) FILTER (
            WHERE kind = 'adjustment' AND starts_with(postings.credit_account, 'user:')
        ), 0) AS granted,
        coalesce(sum(postings.amount) FILTER (
            WHERE kind = 'adjustment' AND starts_with(postings.debit_account, 'user:')
        ), 0) AS taken
    FROM postings
    JOIN corrections ON corrections.correction_key = postings.correction_key
    CROSS JOIN (VALUES ('day'), ('minute')) AS periods (period)
    GROUP BY 1, 2, 3
) AS told
WHERE kept.currency = told.currency AND kept.period = told.period
    AND kept.starts_at = told.starts_at;

GRANT SELECT ON movements TO ledger_reader, ledger_writer, ledger_corrector;
GRANT INSERT ON movements TO ledger_writer, ledger_corrector;
GRANT UPDATE (debits, credits, postings) ON movements TO ledger_corrector;
GRANT UPDATE (credits, postings) ON movements TO ledger_writer;
GRANT UPDATE (reversals, reversed, granted, taken) ON period_totals TO ledger_corrector;
