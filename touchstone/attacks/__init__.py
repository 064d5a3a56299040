"""One file per attack; a file here is in the catalogue by being here."""
