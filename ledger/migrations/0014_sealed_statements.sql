-- Who closed a month, and when, nothing else tells: it is sealed (0013_seals.sql).

DO $$
BEGIN
    PERFORM seal_rows('statements');
END
$$;
GRANT EXECUTE ON FUNCTION row_seal TO ledger_closer;
