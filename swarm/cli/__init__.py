"""The commands: thin, and quick to say `--help`."""
