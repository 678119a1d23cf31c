-- What the workers of the ingress counted: how many deliveries were believed, and what became of
-- them, so that the books can be held against the door (`ledger verify`); and two indexes for what
-- the ingress looks at meanwhile.

CREATE TABLE tallies (
    worker uuid NOT NULL,
    believed bigint NOT NULL DEFAULT 0,
    credited bigint NOT NULL DEFAULT 0,
    recorded bigint NOT NULL DEFAULT 0,
    ignored bigint NOT NULL DEFAULT 0,
    replayed bigint NOT NULL DEFAULT 0,
    conflicts bigint NOT NULL DEFAULT 0,
    quarantined bigint NOT NULL DEFAULT 0,
    spooled bigint NOT NULL DEFAULT 0,
    unavailable bigint NOT NULL DEFAULT 0,
    abandoned bigint NOT NULL DEFAULT 0,
    in_flight bigint NOT NULL DEFAULT 0,
    kept bigint NOT NULL DEFAULT 0,
    has_ended boolean NOT NULL DEFAULT false,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Not that the outcomes add up: what does not must arrive here, for `ledger verify` to name it.
    CONSTRAINT tally_is_of_one_worker PRIMARY KEY (worker),
    CONSTRAINT tally_holds_no_negative_count CHECK (
        least(
            believed, credited, recorded, ignored, replayed, conflicts, quarantined, spooled,
            unavailable, abandoned, in_flight, kept
        ) >= 0
    )
);
COMMENT ON TABLE tallies IS
    'What workers of the ingress counted. The row of one that ended is continued by the next.';
COMMENT ON COLUMN tallies.worker IS 'Who writes the row: drawn anew by each worker that takes one.';
COMMENT ON COLUMN tallies.believed IS
    'Deliveries for which a token vouched: all others of these counts but `kept` add up to it.';
COMMENT ON COLUMN tallies.quarantined IS 'Refused, other than as a conflict.';
COMMENT ON COLUMN tallies.spooled IS 'Answered 200 from this machine''s disk; posted later.';
COMMENT ON COLUMN tallies.unavailable IS 'Answered 503: not known to be kept, to be sent again.';
COMMENT ON COLUMN tallies.abandoned IS
    'Never answered: the sender had gone, or the worker was killed.';
COMMENT ON COLUMN tallies.in_flight IS 'Believed and not answered yet when the row was written.';
COMMENT ON COLUMN tallies.kept IS 'How often something was put into the quarantine, from the spool too.';
COMMENT ON COLUMN tallies.has_ended IS 'Its worker writes no more.';
COMMENT ON CONSTRAINT tally_is_of_one_worker ON tallies IS
    'Also the index that answers: what has this worker counted so far?';

CREATE TRIGGER tallies_are_kept BEFORE DELETE OR TRUNCATE ON tallies
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT ON tallies TO ledger_reader, ledger_writer;
GRANT INSERT, UPDATE ON tallies TO ledger_writer;

CREATE INDEX quarantine_open ON quarantine (number) WHERE state = 'open';
COMMENT ON INDEX quarantine_open IS 'What is open, oldest first, and how many are?';

-- Of a hash: the sender's text may be longer than an entry of an index can be.
CREATE INDEX rewards_of_a_transaction ON rewards (hashtextextended(transaction_id, 0), number)
    WHERE transaction_id IS NOT NULL;
COMMENT ON INDEX rewards_of_a_transaction IS
    'Which reward came first under this transactionId of the sender?';
