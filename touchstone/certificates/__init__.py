"""One file per certificate; a file here is in the catalogue by being here."""
