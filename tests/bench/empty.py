"""The ledger's own gRPC server with one more method, which does nothing."""
