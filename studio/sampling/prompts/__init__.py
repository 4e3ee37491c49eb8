"""Prompts: syntax (`parse`), choices by chance (`wildcards`), what encoders make of it (`encode`)."""
