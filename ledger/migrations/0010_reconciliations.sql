-- Every comparison of the books with somebody else's report: what was compared with what, and the
-- answer, so that the same file can be answered the same way again (`ledger reconcile`).

CREATE TABLE reconciliations (
    number bigint GENERATED ALWAYS AS IDENTITY,
    file_sha256 bytea NOT NULL,
    options jsonb NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    position bigint NOT NULL,
    read_at timestamptz NOT NULL,
    repeats bigint,
    imports boolean NOT NULL DEFAULT false,
    lines bigint NOT NULL,
    matched bigint NOT NULL,
    missing_here bigint NOT NULL,
    missing_there bigint NOT NULL,
    differs bigint NOT NULL,
    duplicate bigint NOT NULL,
    conflict bigint NOT NULL,
    quarantined bigint NOT NULL,
    reversed bigint NOT NULL,
    answer_sha256 bytea NOT NULL,
    run_by text COLLATE "C" NOT NULL,
    run_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT reconciliation_number_is_used_once PRIMARY KEY (number),
    CONSTRAINT reconciliation_file_is_named_by_sha256 CHECK (length(file_sha256) = 32),
    CONSTRAINT reconciliation_answer_is_named_by_sha256 CHECK (length(answer_sha256) = 32),
    CONSTRAINT reconciliation_has_options CHECK (jsonb_typeof(options) = 'object'),
    CONSTRAINT reconciliation_period_is_in_order CHECK (starts_at < ends_at),
    CONSTRAINT reconciliation_position_is_not_negative CHECK (position >= 0),
    CONSTRAINT reconciliation_holds_no_negative_count CHECK (
        least(
            lines, matched, missing_here, missing_there, differs, duplicate, conflict,
            quarantined, reversed
        ) >= 0
    ),
    -- What is missing there has no line.
    CONSTRAINT reconciliation_holds_each_line_once CHECK (
        lines = matched + missing_here + differs + duplicate + conflict + quarantined + reversed
    ),
    CONSTRAINT reconciliation_repeated_is_recorded
        FOREIGN KEY (repeats) REFERENCES reconciliations (number),
    CONSTRAINT reconciliation_is_run_by_somebody CHECK (run_by <> '')
);
COMMENT ON TABLE reconciliations IS
    'Append-only. Every comparison of the books with a report: of what with what, and the answer.';
COMMENT ON COLUMN reconciliations.file_sha256 IS 'Of the file as it was given, packed or not.';
COMMENT ON COLUMN reconciliations.options IS 'What else decides the answer: columns, period, campaigns.';
COMMENT ON COLUMN reconciliations.starts_at IS
    'Rewards posted from here to before the end must stand in the file.';
COMMENT ON COLUMN reconciliations.position IS
    'Rewards were read up to this position of `commits`, whatever came later.';
COMMENT ON COLUMN reconciliations.read_at IS
    'What is not placed by `commits`, such as the quarantine, was read as of this time.';
COMMENT ON COLUMN reconciliations.repeats IS
    'The run of the same file whose position and time were taken; NULL when the books were read as'
    ' they were.';
COMMENT ON COLUMN reconciliations.imports IS
    'Whether what was missing here was to be posted afterwards. The counts are of before.';
COMMENT ON COLUMN reconciliations.answer_sha256 IS 'Of all differences, line by line.';
COMMENT ON CONSTRAINT reconciliation_number_is_used_once ON reconciliations IS
    'Also the index that answers: what did this run find?';

CREATE INDEX reconciliations_of_a_file ON reconciliations (file_sha256, number);
COMMENT ON INDEX reconciliations_of_a_file IS 'As of when was this file compared before?';

CREATE TRIGGER reconciliations_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE
    ON reconciliations FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT ON reconciliations TO ledger_reader, ledger_writer;
GRANT INSERT ON reconciliations TO ledger_writer;

-- The report's lines are compared inside Postgres, in tables that go with the connection. Whoever
-- takes that right from PUBLIC, as the embedded server does, has given it to nobody else.
DO $$
BEGIN
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO ledger_writer', current_database());
END
$$;
