"""Public sets fetched, checked and written down; overlap between sets; several sets in one run. Host code, no JAX."""
