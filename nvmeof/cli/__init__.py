"""The command line: one module per group of commands, and `main` that puts them together."""
