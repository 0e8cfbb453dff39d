"""Independent implementations to compare with. Each runs in a process of its own: some need switches set before import."""
