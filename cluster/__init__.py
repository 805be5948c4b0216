"""Where tasks run. Knows Dask and queues, and nothing of the sweep."""
