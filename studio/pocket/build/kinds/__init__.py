"""The pocket bases, one a family, each in a module of its own."""
