"""Addresses and outbound requests."""
