"""The sweep: what is wanted, what is missing, what is on disk."""
