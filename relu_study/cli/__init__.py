"""The command line: commands, arguments, signals, progress."""
