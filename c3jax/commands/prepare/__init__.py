"""Public sets fetched, checked against pinned hashes and written in one record. Host code, no JAX."""
