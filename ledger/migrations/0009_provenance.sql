-- How what is kept was read: whether it is read in the same way again must be asked, not assumed.

ALTER TABLE quarantine ADD COLUMN read_under text COLLATE "C";
COMMENT ON COLUMN quarantine.read_under IS
    'The digest of the mapping and the default currencies by which the ingress read it last.';

GRANT UPDATE (read_under) ON quarantine TO ledger_writer;
