"""Pictures out: one warm process that loads a base and any adapters."""
