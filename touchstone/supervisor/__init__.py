"""`touchstone up`: a Valkey, a worker and the API under one command."""
