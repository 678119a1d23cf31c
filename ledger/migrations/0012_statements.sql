-- A month that is closed: what every kind of account held before it, what moved it, and what it
-- held after it, for good (`ledger close`).

CREATE TABLE statements (
    month date NOT NULL,
    text text COLLATE "C" NOT NULL,
    sha256 bytea NOT NULL,
    position bigint NOT NULL,
    closed_by text COLLATE "C" NOT NULL,
    login text COLLATE "C" NOT NULL DEFAULT session_user,
    closed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT statement_is_made_once PRIMARY KEY (month),
    CONSTRAINT statement_month_has_its_first_day CHECK (extract(day FROM month) = 1),
    CONSTRAINT statement_digest_is_of_its_text CHECK (sha256 = sha256(convert_to(text, 'UTF8'))),
    CONSTRAINT statement_is_closed_by_somebody CHECK (closed_by <> '')
);
COMMENT ON TABLE statements IS
    'Append-only. Months of UTC that are closed, one after the other, each with its statement.';
COMMENT ON COLUMN statements.month IS 'Its first day.';
COMMENT ON COLUMN statements.text IS
    'The statement, line by line, cells between tabs. It names the digest of the month before.';
COMMENT ON COLUMN statements.position IS
    'The last position of `commits` when it was made: nothing that came later is in it.';
COMMENT ON COLUMN statements.closed_by IS 'Who closed it, as they say.';
COMMENT ON COLUMN statements.login IS 'As whom it was written: what the database itself knows.';
COMMENT ON CONSTRAINT statement_is_made_once ON statements IS
    'Also the index that answers: is this month closed, and which was the last?';

CREATE FUNCTION check_statement() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    next_month date;
BEGIN
    IF clock_timestamp() < (NEW.month + interval '1 month') AT TIME ZONE 'UTC' THEN
        RAISE EXCEPTION 'the month is not over'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'statement_month_is_over';
    END IF;
    SELECT coalesce(
        (SELECT max(month) + interval '1 month' FROM statements),
        (SELECT date_trunc('month', min(starts_at) AT TIME ZONE 'UTC') FROM period_totals
         WHERE period = 'day')
    )::date INTO next_month;
    IF NEW.month IS DISTINCT FROM next_month THEN
        RAISE EXCEPTION 'months are closed in their order'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'statement_has_its_turn';
    END IF;
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION check_statement FROM PUBLIC;
CREATE TRIGGER statements_are_checked BEFORE INSERT ON statements
    FOR EACH ROW EXECUTE FUNCTION check_statement();

CREATE TRIGGER statements_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON statements
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

DO $$
DECLARE
    is_allowed text := CASE WHEN current_setting('server_version_num')::integer < 160000
        THEN 'MEMBER' ELSE 'SET' END;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ledger_closer') THEN
        CREATE ROLE ledger_closer NOLOGIN;
    END IF;
    IF NOT pg_has_role(current_user, 'ledger_closer', is_allowed) THEN
        EXECUTE format('GRANT ledger_closer TO %I', current_user);
    END IF;
END
$$;

GRANT SELECT ON statements TO ledger_reader, ledger_closer;
-- Who posts looks at when the last closed month ended.
GRANT SELECT (month) ON statements TO ledger_writer, ledger_corrector;
GRANT SELECT ON currencies, period_totals, commits TO ledger_closer;
-- When, and as whom, nobody says but the database.
GRANT INSERT (month, text, sha256, position, closed_by) ON statements TO ledger_closer;
