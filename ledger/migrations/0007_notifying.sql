-- Whoever listens is told of each commit that brought rewards, so that nobody has to ask again and
-- again (ledger/watching.py).

-- As before (0004_watching.sql), and at its end the notification: Postgres sends it when the commit
-- can be seen, once for each database transaction, and never for one that was undone.
CREATE OR REPLACE FUNCTION place_commit() RETURNS trigger LANGUAGE plpgsql AS $$
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
    unused := pg_notify('ledger_commits', '')::text;
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION place_commit FROM PUBLIC;
