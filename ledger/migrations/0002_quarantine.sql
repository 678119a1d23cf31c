-- Believed deliveries that could not be posted, kept whole until an operator deals with them.

CREATE TABLE quarantine (
    believed_bytes_sha256 bytea NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    believed_bytes bytea NOT NULL,
    reason text COLLATE "C" NOT NULL,
    detail text COLLATE "C",
    reward_id text COLLATE "C",
    token text COLLATE "C",
    form text COLLATE "C",
    content_type text COLLATE "C",
    seen bigint NOT NULL DEFAULT 1,
    first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    state text COLLATE "C" NOT NULL DEFAULT 'open',
    closed_at timestamptz,
    closed_by text COLLATE "C",
    closed_why text COLLATE "C",
    CONSTRAINT quarantine_keeps_a_body_once PRIMARY KEY (believed_bytes_sha256),
    CONSTRAINT quarantine_digest_is_of_its_body
        CHECK (believed_bytes_sha256 = sha256(believed_bytes)),
    CONSTRAINT quarantine_state_is_known CHECK (state IN ('open', 'posted', 'discarded')),
    CONSTRAINT quarantine_is_closed_by_somebody CHECK (
        (state = 'open') = (closed_at IS NULL)
        AND (state <> 'discarded' OR (closed_by <> '' AND closed_why <> ''))
        AND (state <> 'discarded' OR (closed_by IS NOT NULL AND closed_why IS NOT NULL))
    ),
    CONSTRAINT quarantine_was_seen CHECK (seen > 0)
);
COMMENT ON TABLE quarantine IS
    'Believed deliveries that could not be posted, whole, once for each distinct body.';
COMMENT ON COLUMN quarantine.reason IS 'The kind of the error, such as NotAReward or IdempotencyConflict.';
COMMENT ON COLUMN quarantine.reward_id IS 'Of a conflict: the reward that stands in the books.';
COMMENT ON COLUMN quarantine.seen IS 'How many deliveries brought this body.';

CREATE UNIQUE INDEX quarantine_by_number ON quarantine (number);
COMMENT ON INDEX quarantine_by_number IS 'Which delivery does the operator mean, and what is open?';

CREATE TRIGGER quarantine_is_kept BEFORE DELETE OR TRUNCATE ON quarantine
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT ON quarantine TO ledger_reader, ledger_writer;
GRANT INSERT ON quarantine TO ledger_writer;
GRANT UPDATE (reason, detail, reward_id, seen, last_seen_at, state, closed_at, closed_by, closed_why)
    ON quarantine TO ledger_writer;
