"""Schema revisions of the catalog, applied by `registry.schema`."""

HEAD = "0013"  # newest revision; a catalog that says so needs no migration
