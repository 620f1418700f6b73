"""Built-in policies; look them up by name with ``tokenflex.policies`` of the package's front door."""
