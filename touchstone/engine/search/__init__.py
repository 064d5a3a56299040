"""Parts that attacks are made of: ascent, random search, walks along the decision boundary."""
