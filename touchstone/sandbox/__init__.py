"""Uploads decoded in child processes that may die of them."""
