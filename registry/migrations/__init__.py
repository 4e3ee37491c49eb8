"""Schema revisions of the catalog, applied by `registry.schema`."""

HEAD = "0009"  # newest revision; a catalog that says so needs no migration
