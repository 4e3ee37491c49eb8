"""Own interface components."""
