"""The command line, a file for each command; `app` puts them together."""
