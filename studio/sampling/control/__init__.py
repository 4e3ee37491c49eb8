"""Steering a picture by another one: maps of it (edges, depth, pose) and the networks that read them."""
