-- Corrections: what was posted stays, so a mistake is mended by another posting. A reversal takes
-- back what a reward credited, whole or in part; an adjustment moves an amount between a user and
-- a house account, proposed by one person and approved by another.

CREATE TABLE corrections (
    correction_key text COLLATE "C" NOT NULL,
    number bigint NOT NULL DEFAULT nextval('rewards_number_seq'),
    kind text COLLATE "C" NOT NULL,
    reward_id text COLLATE "C",
    user_id text COLLATE "C" NOT NULL,
    currency text COLLATE "C" NOT NULL,
    debit_account text COLLATE "C" NOT NULL,
    credit_account text COLLATE "C" NOT NULL,
    amount numeric NOT NULL,
    reason text COLLATE "C" NOT NULL,
    actor text COLLATE "C" NOT NULL,
    approver text COLLATE "C",
    login text COLLATE "C" NOT NULL DEFAULT session_user,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    written_by xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT correction_is_recorded_once PRIMARY KEY (correction_key),
    CONSTRAINT correction_key_is_not_empty CHECK (correction_key <> ''),
    CONSTRAINT correction_kind_is_known CHECK (kind IN ('reversal', 'adjustment')),
    CONSTRAINT correction_has_a_reward_to_reverse_or_none
        CHECK ((kind = 'reversal') = (reward_id IS NOT NULL)),
    CONSTRAINT correction_amount_is_positive CHECK (amount > 0 AND amount < 'Infinity'),
    CONSTRAINT correction_has_a_reason CHECK (reason <> '' AND actor <> ''),
    CONSTRAINT adjustment_is_approved_by_another_person
        CHECK ((kind = 'adjustment') = (approver IS NOT NULL) AND approver <> actor)
);
COMMENT ON TABLE corrections IS
    'Why something was posted that no reward told: who, for what reason, and what it takes back.';
COMMENT ON COLUMN corrections.correction_key IS 'The idempotency key: the same one is posted once.';
COMMENT ON COLUMN corrections.number IS 'Order of arrival, from the same sequence as rewards.number.';
COMMENT ON COLUMN corrections.reward_id IS 'Of a reversal: the reward that it takes back.';
COMMENT ON COLUMN corrections.actor IS 'Who asked for it, as they say.';
COMMENT ON COLUMN corrections.approver IS 'Of an adjustment: who else agreed, as they say.';
COMMENT ON COLUMN corrections.login IS 'As whom it was written: what the database itself knows.';
COMMENT ON CONSTRAINT correction_is_recorded_once ON corrections IS
    'Also the index that answers: was this asked for before?';

CREATE INDEX corrections_of_a_reward ON corrections (reward_id) WHERE reward_id IS NOT NULL;
COMMENT ON INDEX corrections_of_a_reward IS 'How much of this reward was reversed?';
CREATE INDEX corrections_of_a_user ON corrections (user_id, number);
COMMENT ON INDEX corrections_of_a_user IS 'Which corrections had this user, newest first?';
CREATE INDEX corrections_of_a_commit ON corrections (written_by, number);
COMMENT ON INDEX corrections_of_a_commit IS
    'Which corrections did this database transaction bring, in order?';

CREATE TABLE proposals (
    proposal_key text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    currency text COLLATE "C" NOT NULL,
    debit_account text COLLATE "C" NOT NULL,
    credit_account text COLLATE "C" NOT NULL,
    amount numeric NOT NULL,
    reason text COLLATE "C" NOT NULL,
    proposed_by text COLLATE "C" NOT NULL,
    proposed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    state text COLLATE "C" NOT NULL DEFAULT 'open',
    decided_by text COLLATE "C",
    decided_at timestamptz,
    CONSTRAINT proposal_is_made_once PRIMARY KEY (proposal_key),
    CONSTRAINT proposal_currency_is_registered FOREIGN KEY (currency) REFERENCES currencies (code),
    CONSTRAINT proposal_key_is_not_empty CHECK (proposal_key <> ''),
    CONSTRAINT proposal_amount_is_positive CHECK (amount > 0 AND amount < 'Infinity'),
    CONSTRAINT proposal_is_between_a_user_and_the_house CHECK (
        ('user:' || user_id IN (debit_account, credit_account))
        AND (starts_with(debit_account, 'adjustment:') OR starts_with(credit_account, 'adjustment:'))
    ),
    CONSTRAINT proposal_has_a_reason CHECK (reason <> '' AND proposed_by <> ''),
    CONSTRAINT proposal_state_is_known CHECK (state IN ('open', 'approved', 'rejected')),
    CONSTRAINT proposal_is_decided_by_somebody
        CHECK ((state = 'open') = (decided_by IS NULL) AND (state = 'open') = (decided_at IS NULL)),
    CONSTRAINT proposal_is_approved_by_another_person
        CHECK (state <> 'approved' OR decided_by <> proposed_by)
);
COMMENT ON TABLE proposals IS
    'Adjustments that somebody proposed. One that is approved is posted under the same key.';
COMMENT ON CONSTRAINT proposal_is_made_once ON proposals IS
    'Also the index that answers: what was proposed under this key?';
CREATE INDEX proposals_open ON proposals (proposed_at) WHERE state = 'open';
COMMENT ON INDEX proposals_open IS 'What waits for a second person, oldest first?';

ALTER TABLE postings
    ALTER COLUMN reward_id DROP NOT NULL,
    ADD COLUMN correction_key text COLLATE "C",
    ADD CONSTRAINT posting_has_one_source CHECK (num_nonnulls(reward_id, correction_key) = 1);
COMMENT ON COLUMN postings.correction_key IS 'Where it does not post a reward: the correction it posts.';
CREATE UNIQUE INDEX posting_correction_is_posted_once ON postings (correction_key)
    WHERE correction_key IS NOT NULL;
COMMENT ON INDEX posting_correction_is_posted_once IS
    'Nothing is corrected twice. Also answers: how was this correction posted?';

ALTER TABLE balances
    DROP CONSTRAINT balance_account_is_of_a_kind,
    ADD CONSTRAINT balance_account_is_of_a_kind CHECK (
        starts_with(account, 'user:') OR starts_with(account, 'campaign:')
        OR starts_with(account, 'adjustment:')
    );

ALTER TABLE period_totals
    ADD COLUMN corrections bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT period_corrections_are_postings CHECK (corrections BETWEEN 0 AND postings);
COMMENT ON COLUMN period_totals.corrections IS 'How many of its postings post no reward.';

DROP VIEW entries;
CREATE VIEW entries AS
    SELECT debit_account AS account, 'debit' AS side, currency, amount,
           user_id, version, reward_id, correction_key, posted_at
    FROM postings
    UNION ALL
    SELECT credit_account, 'credit', currency, amount,
           user_id, version, reward_id, correction_key, posted_at
    FROM postings;
COMMENT ON VIEW entries IS 'The lines an accountant reads: a debit and a credit for each posting.';

-- Whoever reverses the same reward waits here, and then sees what the one before took back.
CREATE FUNCTION check_reversal() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    credited postings%ROWTYPE;
    reversed numeric;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('reversal of ' || NEW.reward_id, 0));
    SELECT * INTO credited FROM postings WHERE reward_id = NEW.reward_id;
    IF (credited.user_id, credited.currency, credited.credit_account, credited.debit_account)
        IS DISTINCT FROM (NEW.user_id, NEW.currency, NEW.debit_account, NEW.credit_account)
    THEN
        RAISE EXCEPTION 'a reversal is the opposite of what its reward posted'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'reversal_is_the_opposite_posting';
    END IF;
    SELECT coalesce(sum(amount), 0) INTO reversed FROM corrections WHERE reward_id = NEW.reward_id;
    IF reversed + NEW.amount > credited.amount THEN
        RAISE EXCEPTION 'more would be reversed than was credited'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'reversals_do_not_exceed_their_reward';
    END IF;
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION check_reversal FROM PUBLIC;
CREATE TRIGGER reversals_are_checked BEFORE INSERT ON corrections
    FOR EACH ROW WHEN (NEW.kind = 'reversal') EXECUTE FUNCTION check_reversal();

CREATE FUNCTION check_adjustment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM proposals
    WHERE proposal_key = NEW.correction_key AND state = 'approved'
        AND (user_id, currency, debit_account, credit_account, amount, reason, proposed_by, decided_by)
            = (NEW.user_id, NEW.currency, NEW.debit_account, NEW.credit_account, NEW.amount,
               NEW.reason, NEW.actor, NEW.approver);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'an adjustment is what was proposed and approved'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'adjustment_is_as_it_was_approved';
    END IF;
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION check_adjustment FROM PUBLIC;
CREATE TRIGGER adjustments_are_checked BEFORE INSERT ON corrections
    FOR EACH ROW WHEN (NEW.kind = 'adjustment') EXECUTE FUNCTION check_adjustment();

-- One lock for rewards and corrections, or positions could be seen out of their order.
CREATE OR REPLACE FUNCTION place_commit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    -- An assignment calls a function at a fraction of what a query costs.
    unused text;
BEGIN
    -- Let go of when this commit can be seen, so positions can be seen in their order only.
    unused := pg_advisory_xact_lock('rewards'::regclass::oid::bigint)::text;
    INSERT INTO commits (written_by, first_number, last_number)
    VALUES (NEW.written_by, NEW.number, currval('rewards_number_seq'));
    -- Should the transaction go on after all, its next row calls here again.
    unused := set_config('ledger.placing', '', true);
    unused := pg_notify('ledger_commits', '')::text;
    RETURN NULL;
END
$$;

-- As for rewards: see 0004_watching.sql.
CREATE CONSTRAINT TRIGGER corrections_are_placed_on_commit
    AFTER INSERT ON corrections DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW
    WHEN (
        CASE WHEN current_setting('ledger.placing', true) IS DISTINCT FROM NEW.written_by::text
        THEN set_config('ledger.placing', NEW.written_by::text, true) IS NOT NULL
        ELSE false END
    )
    EXECUTE FUNCTION place_commit();

CREATE TRIGGER corrections_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON corrections
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER proposals_are_kept BEFORE DELETE OR TRUNCATE ON proposals
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE FUNCTION refuse_second_decision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'what was decided stays'
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'proposal_is_decided_once';
END
$$;
REVOKE ALL ON FUNCTION refuse_second_decision FROM PUBLIC;
CREATE TRIGGER proposals_are_decided_once BEFORE UPDATE ON proposals
    FOR EACH ROW WHEN (OLD.state <> 'open') EXECUTE FUNCTION refuse_second_decision();

DO $$
DECLARE
    is_allowed text := CASE WHEN current_setting('server_version_num')::integer < 160000
        THEN 'MEMBER' ELSE 'SET' END;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ledger_corrector') THEN
        CREATE ROLE ledger_corrector NOLOGIN;
    END IF;
    IF NOT pg_has_role(current_user, 'ledger_corrector', is_allowed) THEN
        EXECUTE format('GRANT ledger_corrector TO %I', current_user);
    END IF;
END
$$;

GRANT SELECT ON corrections, proposals, entries TO ledger_reader;
GRANT SELECT ON corrections TO ledger_writer;
GRANT SELECT ON currencies, rewards, postings, balances, period_totals, commits, corrections, proposals
    TO ledger_corrector;
GRANT INSERT ON corrections, proposals, postings, balances, period_totals, commits
    TO ledger_corrector;
GRANT UPDATE (state, decided_by, decided_at) ON proposals TO ledger_corrector;
GRANT UPDATE (debits, credits, version, posted_at) ON balances TO ledger_corrector;
GRANT UPDATE (amount, postings, users, corrections) ON period_totals TO ledger_corrector;
GRANT USAGE, SELECT ON SEQUENCE rewards_number_seq TO ledger_corrector;
