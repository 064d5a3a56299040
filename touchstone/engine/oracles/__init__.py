"""Models that answer queries: networks on this machine, and remote models."""
