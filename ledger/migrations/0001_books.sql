-- The books: currencies, rewards, postings, balances, and the view `entries`.
--
-- Three natural keys, no foreign key between the three tables: a reward, its
-- posting and the balances are written by one statement (ledger/writing.py).
-- Keys are COLLATE "C": byte order, so that an index does not depend on the
-- system's collation version.

CREATE TABLE currencies (
    code text COLLATE "C" NOT NULL,
    scale smallint NOT NULL,
    name text NOT NULL,
    CONSTRAINT currency_is_registered_once PRIMARY KEY (code),
    CONSTRAINT currency_code_is_well_formed CHECK (code ~ '^[A-Z][A-Z0-9_]{0,19}$'),
    CONSTRAINT currency_scale_is_bounded CHECK (scale BETWEEN 0 AND 18)
);
COMMENT ON TABLE currencies IS 'What an amount can be counted in, and how many decimals it has.';
COMMENT ON CONSTRAINT currency_is_registered_once ON currencies IS
    'Also the index that answers: how many decimals has this currency?';

CREATE TABLE rewards (
    reward_id text COLLATE "C" NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    user_id text COLLATE "C" NOT NULL,
    campaign_id text COLLATE "C" NOT NULL,
    type text COLLATE "C",
    reward_type text COLLATE "C",
    reward_name text COLLATE "C",
    reward_amount numeric,
    currency text COLLATE "C",
    code text COLLATE "C",
    status text COLLATE "C",
    transaction_id text COLLATE "C",
    reward_expires_at timestamptz,
    reward_category text COLLATE "C",
    details json,
    body text COLLATE "C",
    tnc json,
    webhook_type text COLLATE "C",
    believed_bytes bytea NOT NULL,
    believed_bytes_sha256 bytea NOT NULL GENERATED ALWAYS AS (sha256(believed_bytes)) STORED,
    fingerprint bytea NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT reward_is_recorded_once PRIMARY KEY (reward_id),
    CONSTRAINT reward_id_is_not_empty CHECK (reward_id <> ''),
    CONSTRAINT reward_user_is_not_empty CHECK (user_id <> ''),
    CONSTRAINT reward_campaign_is_not_empty CHECK (campaign_id <> ''),
    CONSTRAINT reward_amount_is_not_negative
        CHECK (reward_amount >= 0 AND reward_amount < 'Infinity'),
    CONSTRAINT reward_with_a_currency_has_an_amount
        CHECK (currency IS NULL OR (reward_amount IS NOT NULL AND reward_amount > 0)),
    CONSTRAINT reward_fingerprint_is_sha256 CHECK (length(fingerprint) = 32)
);
COMMENT ON TABLE rewards IS
    'The source documents: what the sender said, whole. `reward_id` is the idempotency key.';
COMMENT ON COLUMN rewards.number IS 'Order of arrival, unique; the key of history pages. May have gaps.';
COMMENT ON COLUMN rewards.currency IS 'The currency it was credited in; NULL when nothing was posted.';
COMMENT ON COLUMN rewards.details IS 'The details object as sent, custom attributes included.';
COMMENT ON COLUMN rewards.believed_bytes IS 'The text that the signature vouched for, byte for byte.';
COMMENT ON COLUMN rewards.fingerprint IS
    'SHA-256 of what decides the money: user, amount, currency, campaign, reward type, code.';

COMMENT ON CONSTRAINT reward_is_recorded_once ON rewards IS
    'The gate: nothing is posted twice. Also the index that answers: what was this reward?';

CREATE INDEX rewards_of_a_user ON rewards (user_id, number);
COMMENT ON INDEX rewards_of_a_user IS 'Which rewards did this user win, newest first, page by page?';

CREATE TABLE postings (
    user_id text COLLATE "C" NOT NULL,
    currency text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    reward_id text COLLATE "C" NOT NULL,
    debit_account text COLLATE "C" NOT NULL,
    credit_account text COLLATE "C" NOT NULL,
    amount numeric NOT NULL,
    balance_after numeric NOT NULL,
    posted_at timestamptz NOT NULL,
    CONSTRAINT posting_version_is_used_once PRIMARY KEY (user_id, currency, version),
    CONSTRAINT posting_reward_is_posted_once UNIQUE (reward_id),
    CONSTRAINT posting_currency_is_registered FOREIGN KEY (currency) REFERENCES currencies (code),
    CONSTRAINT posting_version_is_positive CHECK (version > 0),
    CONSTRAINT posting_amount_is_positive CHECK (amount > 0),
    -- NaN sorts above every number, so this refuses it together with Infinity.
    CONSTRAINT posting_amount_is_finite CHECK (amount < 'Infinity'),
    CONSTRAINT posting_balance_is_finite
        CHECK (balance_after > '-Infinity' AND balance_after < 'Infinity'),
    CONSTRAINT posting_legs_differ CHECK (debit_account <> credit_account),
    CONSTRAINT posting_user_holds_a_leg
        CHECK ('user:' || user_id IN (debit_account, credit_account))
);
COMMENT ON TABLE postings IS
    'Append-only. One row carries both legs, so it is balanced by construction.';
COMMENT ON COLUMN postings.version IS 'The user''s place in this currency: 1, 2, 3, … without a gap.';
COMMENT ON COLUMN postings.balance_after IS 'The user''s balance in this currency after this posting.';
COMMENT ON COLUMN postings.posted_at IS
    'Taken after the balance was locked; never runs backwards along versions.';
COMMENT ON CONSTRAINT posting_version_is_used_once ON postings IS
    'Also the index that answers: what happened to this balance, in order?';
COMMENT ON CONSTRAINT posting_reward_is_posted_once ON postings IS
    'Also the index that answers: how was this reward posted?';

CREATE INDEX postings_as_of ON postings (user_id, currency, posted_at, version);
COMMENT ON INDEX postings_as_of IS 'What was this user''s balance at that time?';

CREATE TABLE balances (
    account text COLLATE "C" NOT NULL,
    currency text COLLATE "C" NOT NULL,
    debits numeric NOT NULL,
    credits numeric NOT NULL,
    version bigint NOT NULL,
    posted_at timestamptz NOT NULL,
    CONSTRAINT balance_is_held_once PRIMARY KEY (account, currency),
    CONSTRAINT balance_currency_is_registered FOREIGN KEY (currency) REFERENCES currencies (code),
    CONSTRAINT balance_account_is_of_a_kind CHECK (
        starts_with(account, 'user:') OR starts_with(account, 'campaign:')
    ),
    CONSTRAINT balance_debits_are_not_negative CHECK (debits >= 0 AND debits < 'Infinity'),
    CONSTRAINT balance_credits_are_not_negative CHECK (credits >= 0 AND credits < 'Infinity'),
    CONSTRAINT balance_version_is_positive CHECK (version > 0)
);
COMMENT ON TABLE balances IS
    'All debits and all credits of an account; its balance is the normal side less the other.';
COMMENT ON COLUMN balances.version IS 'How many postings touched the account.';
COMMENT ON CONSTRAINT balance_is_held_once ON balances IS
    'Also the index that answers: what is this account''s balance now?';

CREATE VIEW entries AS
    SELECT debit_account AS account, 'debit' AS side, currency, amount,
           user_id, version, reward_id, posted_at
    FROM postings
    UNION ALL
    SELECT credit_account, 'credit', currency, amount,
           user_id, version, reward_id, posted_at
    FROM postings;
COMMENT ON VIEW entries IS 'The lines an accountant reads: a debit and a credit for each posting.';

-- What was posted stays. These fire only when somebody tries, so posting never pays for them.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on % is refused: the books are append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'books_are_append_only';
END
$$;
REVOKE ALL ON FUNCTION refuse_change FROM PUBLIC;

CREATE TRIGGER rewards_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON rewards
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER postings_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON postings
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER balances_are_kept BEFORE DELETE OR TRUNCATE ON balances
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER currencies_are_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON currencies
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Roles are the cluster's, so another database on it may have made them already.
DO $$
DECLARE
    -- Before PostgreSQL 16 there is only membership, and it is enough.
    is_allowed text := CASE WHEN current_setting('server_version_num')::integer < 160000
        THEN 'MEMBER' ELSE 'SET' END;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ledger_writer') THEN
        CREATE ROLE ledger_writer NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ledger_reader') THEN
        CREATE ROLE ledger_reader NOLOGIN;
    END IF;
    -- Whoever migrates may become either: `ledger run` gives its services these roles.
    IF NOT pg_has_role(current_user, 'ledger_writer', is_allowed) THEN
        EXECUTE format('GRANT ledger_writer TO %I', current_user);
    END IF;
    IF NOT pg_has_role(current_user, 'ledger_reader', is_allowed) THEN
        EXECUTE format('GRANT ledger_reader TO %I', current_user);
    END IF;
END
$$;

GRANT SELECT ON currencies, rewards, postings, balances, entries TO ledger_reader;
GRANT SELECT ON currencies, rewards, postings, balances TO ledger_writer;
GRANT INSERT ON rewards, postings, balances TO ledger_writer;
GRANT UPDATE (debits, credits, version, posted_at) ON balances TO ledger_writer;
