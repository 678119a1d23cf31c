-- Who closes a month holds its statement against the movements and the postings, before it stays.

GRANT SELECT ON movements, postings, corrections TO ledger_closer;
