"""What the command line does beside training: one module a command."""
