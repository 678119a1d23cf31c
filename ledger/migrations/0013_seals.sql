-- What nothing else in the books could tell, sealed: the digest of the believed bytes is a column
-- of its own, a commit carries a seal of what it brought, and a row of a small table one of itself.
-- `ledger verify` derives them again, so a change of any column shows. A seal is no secret: it names
-- a change, and whoever may change every row may change the seals too.

-- As a generated column it would follow the bytes, whoever changes them.
ALTER TABLE rewards
    ALTER COLUMN believed_bytes_sha256 DROP EXPRESSION IF EXISTS,
    ADD CONSTRAINT reward_digest_is_sha256 CHECK (length(believed_bytes_sha256) = 32);
COMMENT ON COLUMN rewards.believed_bytes_sha256 IS
    'SHA-256 of the believed bytes, taken by the writer before they were sent here.';

-- For a writer of the version before, which goes on while a new one is rolled out.
CREATE FUNCTION digest_believed_bytes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.believed_bytes_sha256 := sha256(NEW.believed_bytes);
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION digest_believed_bytes FROM PUBLIC;
CREATE TRIGGER rewards_are_digested BEFORE INSERT ON rewards
    FOR EACH ROW WHEN (NEW.believed_bytes_sha256 IS NULL) EXECUTE FUNCTION digest_believed_bytes();

-- Every column but the believed bytes, whose digest is among them. Postgres's own hashes: they are
-- cheap, and the same in each of its versions, because partitions stand on them.
CREATE FUNCTION reward_seal(sealed rewards) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE
RETURN hash_record_extended(
    ROW(
        sealed.reward_id, sealed.number, sealed.user_id, sealed.campaign_id, sealed.type,
        sealed.reward_type, sealed.reward_name, sealed.reward_amount, sealed.currency, sealed.code,
        sealed.status, sealed.transaction_id, sealed.reward_expires_at, sealed.reward_category,
        sealed.details::text, sealed.body, sealed.tnc::text, sealed.webhook_type,
        sealed.believed_bytes_sha256, sealed.fingerprint, sealed.recorded_at,
        sealed.written_by::text
    ),
    0
);

CREATE FUNCTION posting_seal(sealed postings) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE
RETURN hash_record_extended(
    ROW(
        sealed.user_id, sealed.currency, sealed.version, sealed.reward_id, sealed.correction_key,
        sealed.debit_account, sealed.credit_account, sealed.amount, sealed.balance_after,
        sealed.posted_at
    ),
    0
);

ALTER TABLE commits ADD COLUMN seal bigint;
COMMENT ON COLUMN commits.seal IS
    'A hash of this row, and of every reward, correction and posting that came with the commit.';

CREATE FUNCTION commit_seal(sealed commits, brought bigint) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN hash_record_extended(
    ROW(
        sealed.position, sealed.written_by::text, sealed.first_number, sealed.last_number,
        sealed.committed_at
    ),
    brought
);

-- A row of a small table, whatever columns it has. Times as in UTC, whoever asks.
CREATE FUNCTION row_seal(sealed jsonb) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN hashtextextended((jsonb_strip_nulls(sealed) - 'seal')::text, 0);

CREATE FUNCTION seal_row() RETURNS trigger LANGUAGE plpgsql SET timezone = 'UTC' AS $$
BEGIN
    NEW.seal := row_seal(to_jsonb(NEW));
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION reward_seal, posting_seal, commit_seal, row_seal, seal_row FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reward_seal, posting_seal, commit_seal, row_seal
    TO ledger_reader, ledger_writer, ledger_corrector;

SET LOCAL timezone = 'UTC';

DO $$
DECLARE
    sealed text;
BEGIN
    FOREACH sealed IN ARRAY ARRAY[
        'corrections', 'currencies', 'proposals', 'quarantine', 'reconciliations', 'sealing_keys',
        'tallies'
    ] LOOP
        EXECUTE format('ALTER TABLE %I ADD COLUMN seal bigint', sealed);
        EXECUTE format('ALTER TABLE %I DISABLE TRIGGER USER', sealed);
        EXECUTE format('UPDATE %I AS kept SET seal = row_seal(to_jsonb(kept))', sealed);
        EXECUTE format('ALTER TABLE %I ENABLE TRIGGER USER', sealed);
        EXECUTE format('ALTER TABLE %I ALTER COLUMN seal SET NOT NULL', sealed);
        EXECUTE format('COMMENT ON COLUMN %I.seal IS %L', sealed, 'A hash of the rest of the row.');
        EXECUTE format(
            'CREATE TRIGGER %I BEFORE INSERT OR UPDATE ON %I FOR EACH ROW EXECUTE FUNCTION seal_row()',
            sealed || '_are_sealed', sealed
        );
    END LOOP;
END
$$;

ALTER TABLE commits DISABLE TRIGGER USER;
UPDATE commits SET seal = commit_seal(commits, coalesce((
    SELECT bit_xor(
        reward_seal(rewards)
        # coalesce((
            SELECT posting_seal(postings) FROM postings WHERE postings.reward_id = rewards.reward_id
        ), 0)
    )
    FROM rewards
    WHERE rewards.written_by = commits.written_by
        AND rewards.number BETWEEN commits.first_number AND commits.last_number
), 0) # coalesce((
    SELECT bit_xor(
        corrections.seal
        # coalesce((
            SELECT posting_seal(postings) FROM postings
            WHERE postings.correction_key = corrections.correction_key
        ), 0)
    )
    FROM corrections
    WHERE corrections.written_by = commits.written_by
        AND corrections.number BETWEEN commits.first_number AND commits.last_number
), 0));
ALTER TABLE commits ENABLE TRIGGER USER;
ALTER TABLE commits ALTER COLUMN seal SET NOT NULL;

-- As before (0008_corrections.sql), with the seal. What was brought is looked at before the lock,
-- so that nobody waits for it.
CREATE OR REPLACE FUNCTION place_commit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    -- An assignment calls a function at a fraction of what a query costs.
    unused text;
    placed commits%ROWTYPE;
    brought bigint;
BEGIN
    placed.written_by := NEW.written_by;
    placed.first_number := NEW.number;
    placed.last_number := currval('rewards_number_seq');
    SELECT coalesce(bit_xor(sealed), 0) INTO brought
    FROM (
        SELECT reward_seal(rewards) # coalesce((
            SELECT posting_seal(postings) FROM postings WHERE postings.reward_id = rewards.reward_id
        ), 0)
        FROM rewards
        WHERE rewards.written_by = placed.written_by
            AND rewards.number BETWEEN placed.first_number AND placed.last_number
        UNION ALL
        SELECT corrections.seal # coalesce((
            SELECT posting_seal(postings) FROM postings
            WHERE postings.correction_key = corrections.correction_key
        ), 0)
        FROM corrections
        WHERE corrections.written_by = placed.written_by
            AND corrections.number BETWEEN placed.first_number AND placed.last_number
    ) AS came (sealed);
    -- Let go of when this commit can be seen, so positions can be seen in their order only.
    unused := pg_advisory_xact_lock('rewards'::regclass::oid::bigint)::text;
    placed.position := nextval('commits_position_seq');
    placed.committed_at := clock_timestamp();
    INSERT INTO commits (position, written_by, first_number, last_number, committed_at, seal)
    OVERRIDING SYSTEM VALUE
    VALUES (
        placed.position, placed.written_by, placed.first_number, placed.last_number,
        placed.committed_at, commit_seal(placed, brought)
    );
    -- Should the transaction go on after all, its next row calls here again.
    unused := set_config('ledger.placing', '', true);
    unused := pg_notify('ledger_commits', '')::text;
    RETURN NULL;
END
$$;

GRANT USAGE ON SEQUENCE commits_position_seq TO ledger_writer, ledger_corrector;
