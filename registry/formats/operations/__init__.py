"""What can be done with adapters beside training them, one file an operation; numpy only."""
