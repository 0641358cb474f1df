"""The command line: one file for each command, combined in `app`."""
