"""What trains. A run directory is its whole world; it never opens the catalog."""
