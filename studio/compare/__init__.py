"""Measures that say how close pictures are to a style."""
