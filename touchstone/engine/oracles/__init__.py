"""Models made ready to be asked, here or at another address."""
