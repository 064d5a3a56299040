"""Benchmarks that cannot be run where they are written."""
