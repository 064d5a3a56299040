"""Votes of noisy copies, and the rules by which counting may stop."""
