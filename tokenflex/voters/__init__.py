"""Built-in voters; look them up by name with ``tokenflex.voters`` of the package's front door."""
