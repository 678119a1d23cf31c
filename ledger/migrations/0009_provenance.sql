-- How what is kept was read, so that it is not read otherwise without a word; and what became of
-- what had been spooled, so that the books can be held against that too (`ledger verify`).

ALTER TABLE quarantine ADD COLUMN read_under text COLLATE "C";
COMMENT ON COLUMN quarantine.read_under IS
    'The digest of the mapping and the default currencies by which the ingress read it last.';

GRANT UPDATE (read_under) ON quarantine TO ledger_writer;

ALTER TABLE tallies
    ADD COLUMN drained_credited bigint NOT NULL DEFAULT 0,
    ADD COLUMN drained_recorded bigint NOT NULL DEFAULT 0,
    ADD COLUMN drained_replayed bigint NOT NULL DEFAULT 0,
    ADD COLUMN drained_ignored bigint NOT NULL DEFAULT 0,
    ADD COLUMN drained_kept bigint NOT NULL DEFAULT 0,
    DROP CONSTRAINT tally_holds_no_negative_count,
    ADD CONSTRAINT tally_holds_no_negative_count CHECK (
        least(
            believed, credited, recorded, ignored, replayed, conflicts, quarantined, spooled,
            unavailable, abandoned, in_flight, kept, drained_credited, drained_recorded,
            drained_replayed, drained_ignored, drained_kept
        ) >= 0
    );
COMMENT ON COLUMN tallies.drained_credited IS
    'Removed from the spool because it was credited from there; so with the others of this name.';
COMMENT ON COLUMN tallies.drained_kept IS 'Removed from the spool because the quarantine has it.';
