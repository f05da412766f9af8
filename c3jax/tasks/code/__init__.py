"""Programming problems: a program is run against hidden tests, each in a sandbox of its own."""
