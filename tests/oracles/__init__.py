"""Independent implementations to compare with, each in a process of its own: some need switches set before import."""
