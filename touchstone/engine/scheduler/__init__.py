"""One thread per device: it gathers the open queries of all jobs and answers them in one pass."""
