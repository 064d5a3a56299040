"""What lives as long as the service: its backend, waiting requests, events, metrics."""
