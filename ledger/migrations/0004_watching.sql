-- The order in which rewards were committed, for those who watch them (ledger/watching.py).
--
-- Neither `rewards.number` nor the id of a database transaction is that order: both are given out
-- when writing begins. So each database transaction takes its position as the last thing before
-- its commit, and whoever comes next waits until that commit can be seen. Whoever has read up to
-- a position has everything below it, whichever transactions are still open.

-- Not volatile for Postgres, so the table is not written anew: the rewards that are there get the
-- id of this migration.
ALTER TABLE rewards ADD COLUMN written_by xid8 NOT NULL DEFAULT pg_current_xact_id();
COMMENT ON COLUMN rewards.written_by IS 'The database transaction that wrote it.';

CREATE INDEX rewards_of_a_commit ON rewards (written_by, number);
COMMENT ON INDEX rewards_of_a_commit IS 'Which rewards did this database transaction bring, in order?';

CREATE TABLE commits (
    position bigint GENERATED ALWAYS AS IDENTITY,
    written_by xid8 NOT NULL,
    first_number bigint NOT NULL,
    last_number bigint NOT NULL,
    committed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT commit_position_is_used_once PRIMARY KEY (position),
    CONSTRAINT commit_numbers_are_in_order CHECK (first_number <= last_number)
);
COMMENT ON TABLE commits IS
    'Every database transaction that brought rewards: position after position, in commit order.';
COMMENT ON COLUMN commits.position IS 'Its place in commit order. May have gaps.';
COMMENT ON COLUMN commits.first_number IS
    'Its rewards'' numbers lie between this and the last. In a cluster into which the books were'
    ' restored, an id of a transaction can come again: a number cannot.';
COMMENT ON COLUMN commits.committed_at IS
    'Just before the commit. Also tells a position from the same one before a restore.';
COMMENT ON CONSTRAINT commit_position_is_used_once ON commits IS
    'Also the index that answers: what was committed after this position?';

-- What stands there was committed in an order that nobody knows: each reward as if by itself,
-- by the time of its posting, which along an account is right.
INSERT INTO commits (written_by, first_number, last_number, committed_at)
SELECT rewards.written_by, number, number, coalesce(postings.posted_at, rewards.recorded_at)
FROM rewards LEFT JOIN postings ON postings.reward_id = rewards.reward_id
ORDER BY 4, postings.version, number;

CREATE FUNCTION place_commit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    -- An assignment calls a function at a fraction of what a query costs.
    unused text;
BEGIN
    -- Let go of when this commit can be seen, so positions can be seen in their order only.
    unused := pg_advisory_xact_lock(TG_RELID::bigint)::text;
    INSERT INTO commits (written_by, first_number, last_number)
    VALUES (NEW.written_by, NEW.number, currval('rewards_number_seq'));
    -- Should the transaction go on after all, its next reward calls here again.
    unused := set_config('ledger.placing', '', true);
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION place_commit FROM PUBLIC;

-- Deferred to the commit, so that a database transaction which stays open holds up nobody; and
-- only for its first reward, which leaves a note in a setting that ends with the transaction.
CREATE CONSTRAINT TRIGGER rewards_are_placed_on_commit
    AFTER INSERT ON rewards DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW
    WHEN (
        CASE WHEN current_setting('ledger.placing', true) IS DISTINCT FROM NEW.written_by::text
        THEN set_config('ledger.placing', NEW.written_by::text, true) IS NOT NULL
        ELSE false END
    )
    EXECUTE FUNCTION place_commit();

CREATE TRIGGER commits_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON commits
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT ON commits TO ledger_reader, ledger_writer;
GRANT INSERT ON commits TO ledger_writer;
-- For `currval`.
GRANT SELECT ON SEQUENCE rewards_number_seq TO ledger_writer;
