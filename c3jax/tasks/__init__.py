"""Task families: problems, and the functions that grade a message against them. Host code, no JAX."""
