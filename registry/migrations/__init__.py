"""Schema revisions of the catalog, applied by `registry.schema`."""

HEAD = "0012"  # newest revision; a catalog that says so needs no migration
