"""Counting votes under noise, and the rules by which counting may stop."""
