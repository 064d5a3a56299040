"""Job records, the ledger that holds them, and the blobs they point to: the only place that talks to Valkey or Redis."""
