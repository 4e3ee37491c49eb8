"""What the studio keeps: the catalog, the files, the formats. Imports nothing else of ours."""
