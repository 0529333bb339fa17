"""The ledger: every response by request_id, append-only."""
