"""The HTTP server itself: the application, its gate, and how events reach the socket."""
