"""Access, checks of requests, and the start and end of the server."""
