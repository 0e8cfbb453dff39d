"""States over HTTP: /v1/states, and what requests of every kind say of states."""
