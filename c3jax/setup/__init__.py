"""What a run needs before its first step: problems, model and plans put together, and whether they fit the machine."""
