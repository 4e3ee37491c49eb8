"""Models that write captions. Only `table` and `run` are for the parent; the rest is loaded by `child`."""
