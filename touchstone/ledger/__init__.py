"""Job records, the ledger that holds them, and the blobs they point to: nobody else talks to Valkey."""
