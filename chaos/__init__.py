"""The fault campaign: the real service under load, while its processes, network and disk fail. Then a checker
compares what clients, ledger, events and blobs say.

`python -m chaos` runs it and prints a table.
"""
