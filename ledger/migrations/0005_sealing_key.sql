-- The key under which page tokens and watch tokens are sealed: one for the books, so that every
-- process of the service knows it, and a token outlives a restart.

CREATE TABLE sealing_keys (
    key bytea NOT NULL,
    is_only boolean NOT NULL DEFAULT true,
    CONSTRAINT sealing_key_is_the_only_one PRIMARY KEY (is_only),
    CONSTRAINT sealing_key_is_the_only_row CHECK (is_only),
    CONSTRAINT sealing_key_is_long_enough CHECK (length(key) >= 32)
);
COMMENT ON TABLE sealing_keys IS
    'One row: what tokens are sealed with. A new key ends every token that is on its way.';
COMMENT ON CONSTRAINT sealing_key_is_the_only_one ON sealing_keys IS
    'Also the index that answers: is there a key already?';

-- Two of them hold 244 random bits, from the strongest source that the core of Postgres has.
INSERT INTO sealing_keys (key)
SELECT uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());

GRANT SELECT ON sealing_keys TO ledger_reader;
