"""Running untrusted programs: a sandbox, and the probe that tries whether it holds."""
