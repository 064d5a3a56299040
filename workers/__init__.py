"""The queue shell: Celery workers that claim jobs from the ledger and run them on an engine."""
