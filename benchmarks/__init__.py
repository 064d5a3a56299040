"""Measurements beside peers: ratios within one run, recorded with date and machine."""
