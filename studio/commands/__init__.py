"""The `studio` commands, one file per group: parse, one call, print."""
