"""Generated from `proto/ledger/v1/ledger.proto` by `make proto`; never edited."""
