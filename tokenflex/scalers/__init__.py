"""Built-in scalers; look them up by name with ``tokenflex.scalers`` of the package's front door."""
