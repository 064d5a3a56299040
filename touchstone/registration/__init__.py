"""A user's model, from request to trial to version."""
