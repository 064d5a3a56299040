"""Between the socket and the routes: connections, limits, the context of a request."""
