"""Copies of the ledger and the blobs, from which a service starts again elsewhere."""
