"""Who may use the server, how much of it, and how much a connection may ask for."""
