"""The command `ostinato`: a file for each subcommand."""
