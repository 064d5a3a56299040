"""`touchstone up`: Valkey, a worker and the API as supervised child processes."""
