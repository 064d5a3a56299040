"""The fault campaign: the real service under load, while what it stands on is killed, cut off, filled up or
frozen; then a checker goes over what client, ledger, events and blobs say.

`python -m chaos` runs it and prints a table.
"""
