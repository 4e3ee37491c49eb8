"""One file per page; no logic, only calls."""
