"""State that lives as long as the process: the backend, waiting requests, events, metrics."""
