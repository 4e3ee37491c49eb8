"""Adapter files: reading them safely, naming their parts, writing them for other tools and proving it."""
