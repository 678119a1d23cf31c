-- Seals: a hash of what nothing else in the books tells, such as a reward's status or a time, taken
-- when the row is written, so that `ledger verify` can name a change of it. A seal is no secret:
-- whoever may change every row may change the seals too.
--
-- Postgres's own hashes are cheap, and the same in each of its versions: partitions stand on them.

COMMENT ON COLUMN rewards.seal IS
    'reward_seal() of the row, by the statement that posts.';

-- The fingerprint tells the other columns, and commit order the number and `written_by`.
CREATE FUNCTION reward_seal(sealed rewards) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE
RETURN hash_record_extended(
    ROW(
        sealed.reward_id, sealed.type, sealed.reward_name, sealed.status, sealed.transaction_id,
        sealed.reward_expires_at, sealed.reward_category, sealed.details::text, sealed.body,
        sealed.tnc::text, sealed.webhook_type, sealed.believed_bytes, sealed.code, sealed.recorded_at
    ),
    0
);

COMMENT ON COLUMN postings.seal IS
    'posting_seal() of the row, by the statement that posts.';

-- All else in a posting follows from other rows.
CREATE FUNCTION posting_seal(sealed postings) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE
RETURN hash_record_extended(
    ROW(coalesce(sealed.reward_id, sealed.correction_key), sealed.posted_at), 0
);

ALTER TABLE commits ADD COLUMN seal bigint;
COMMENT ON COLUMN commits.seal IS 'commit_seal() of the row.';

CREATE FUNCTION commit_seal(sealed commits) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE
RETURN hash_record_extended(
    ROW(
        sealed.position, sealed.written_by::text, sealed.first_number, sealed.last_number,
        sealed.committed_at
    ),
    0
);

-- What stands there is sealed as it stands: the tables are written anew, once. The triggers of
-- 0011_movements.sql hang on the column; the lock that drops them is held to the end.
DROP TRIGGER rewards_are_sealed ON rewards;
DROP TRIGGER postings_are_sealed ON postings;
ALTER TABLE rewards ALTER COLUMN seal TYPE bigint USING reward_seal(rewards);
ALTER TABLE postings ALTER COLUMN seal TYPE bigint USING posting_seal(postings);
ALTER TABLE commits
    ALTER COLUMN seal TYPE bigint USING commit_seal(commits),
    ALTER COLUMN seal SET NOT NULL;
CREATE TRIGGER rewards_are_sealed AFTER INSERT ON rewards
    FOR EACH ROW WHEN (NEW.seal IS NULL) EXECUTE FUNCTION refuse_older_version();
CREATE TRIGGER postings_are_sealed AFTER INSERT ON postings
    FOR EACH ROW WHEN (NEW.seal IS NULL) EXECUTE FUNCTION refuse_older_version();

-- As before (0008_corrections.sql), with the seal.
CREATE OR REPLACE FUNCTION place_commit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    -- An assignment calls a function at a fraction of what a query costs.
    unused text;
    placed commits%ROWTYPE;
BEGIN
    placed.written_by := NEW.written_by;
    placed.first_number := NEW.number;
    placed.last_number := currval('rewards_number_seq');
    -- Let go of when this commit can be seen, so positions can be seen in their order only.
    unused := pg_advisory_xact_lock('rewards'::regclass::oid::bigint)::text;
    placed.position := nextval('commits_position_seq');
    placed.committed_at := clock_timestamp();
    -- As commit_seal(), which would have to be called as a query.
    placed.seal := hash_record_extended(
        ROW(
            placed.position, placed.written_by::text, placed.first_number, placed.last_number,
            placed.committed_at
        ),
        0
    );
    INSERT INTO commits (position, written_by, first_number, last_number, committed_at, seal)
    OVERRIDING SYSTEM VALUE
    VALUES (
        placed.position, placed.written_by, placed.first_number, placed.last_number,
        placed.committed_at, placed.seal
    );
    -- Should the transaction go on after all, its next row calls here again.
    unused := set_config('ledger.placing', '', true);
    unused := pg_notify('ledger_commits', '')::text;
    RETURN NULL;
END
$$;
GRANT USAGE ON SEQUENCE commits_position_seq TO ledger_writer, ledger_corrector;

-- A row of a small table, whatever columns it has: one that is added and empty changes no seal.
CREATE FUNCTION row_seal(sealed jsonb) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN hashtextextended((jsonb_strip_nulls(sealed) - 'seal')::text, 0);

CREATE FUNCTION seal_row() RETURNS trigger LANGUAGE plpgsql SET timezone = 'UTC' SET bytea_output = 'hex' AS $$
BEGIN
    NEW.seal := row_seal(to_jsonb(NEW));
    RETURN NEW;
END
$$;

-- Called again by a migration that fills a new column of rows which are there.
CREATE FUNCTION seal_rows(of_table regclass) RETURNS void
LANGUAGE plpgsql SET timezone = 'UTC' SET bytea_output = 'hex' AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ADD COLUMN IF NOT EXISTS seal bigint', of_table);
    EXECUTE format('COMMENT ON COLUMN %s.seal IS %L', of_table, 'row_seal() of the row.');
    EXECUTE format('ALTER TABLE %s DISABLE TRIGGER USER', of_table);
    EXECUTE format('UPDATE %s AS kept SET seal = row_seal(to_jsonb(kept))', of_table);
    EXECUTE format('ALTER TABLE %s ENABLE TRIGGER USER', of_table);
    EXECUTE format('ALTER TABLE %s ALTER COLUMN seal SET NOT NULL', of_table);
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER rows_are_sealed BEFORE INSERT OR UPDATE ON %s'
        ' FOR EACH ROW EXECUTE FUNCTION seal_row()', of_table
    );
END
$$;

DO $$
BEGIN
    PERFORM seal_rows('corrections'), seal_rows('currencies'), seal_rows('proposals'),
        seal_rows('quarantine'), seal_rows('reconciliations'), seal_rows('sealing_keys'),
        seal_rows('tallies');
END
$$;

REVOKE ALL ON FUNCTION
    reward_seal, posting_seal, commit_seal, row_seal, seal_row, seal_rows FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reward_seal, posting_seal, commit_seal, row_seal
    TO ledger_reader, ledger_writer, ledger_corrector;
