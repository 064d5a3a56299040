"""The caller of a request, its permissions, and its rate limits."""
