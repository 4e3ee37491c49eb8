"""Taking adapters in: files, folders, addresses and watched folders become rows of the catalog."""
