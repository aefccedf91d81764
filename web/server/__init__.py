"""Who may come in, what a request may be, and the server's start and end."""
