"""One thread per device, which collects the open queries of all jobs and answers them in shared passes."""
