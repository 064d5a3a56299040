"""Training of the zoo's networks, and the data sets for it."""
