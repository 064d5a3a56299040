"""Addresses, and requests to other hosts."""
