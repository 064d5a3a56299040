"""From the body of a request to an accepted job."""
