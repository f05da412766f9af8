"""Credit: from the returns of a problem's leaves to the advantage of every message."""
