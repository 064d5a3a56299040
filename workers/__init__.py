"""Workers: Celery processes that claim jobs from the ledger and run them on an engine."""
